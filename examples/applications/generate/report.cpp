#include "report.hpp"

#include <cstdio>
#include <nlohmann/json.hpp>
#include <ostream>

#include "text.hpp"

namespace generate {
namespace {

using text::fixed;

std::string bytes(Index count) {
  const auto value = static_cast<double>(count);
  return value < 1024 * 1024 ? fixed(value / 1024, 1, " KiB") : fixed(value / (1024 * 1024), 1, " MiB");
}

void print_row(std::ostream& out, const char* policy, const std::string (&columns)[8]) {
  static constexpr int widths[] = {8, 10, 8, 10, 11, 10, 13, 12};
  char text[32];
  std::snprintf(text, sizeof text, "  %-14s", policy);
  out << text;
  for (std::size_t i = 0; i < std::size(columns); ++i) {
    out << std::string(std::max<std::size_t>(1, static_cast<std::size_t>(widths[i]) - columns[i].size()), ' ')
        << columns[i];
  }
  out << '\n';
}

}  // namespace

void print_table(std::ostream& out, const std::vector<Measurement>& policies) {
  print_row(out, "policy", {"prompt", "computed", "reused", "TTFT", "generated", "decode", "KV reserved", "KV used"});
  for (const Measurement& m : policies) {
    print_row(out, std::string(m.policy).c_str(),
              {std::to_string(m.prompt_tokens), std::to_string(m.computed), std::to_string(m.reused),
               fixed(1e3 * m.prefill_seconds, 2, " ms"), std::to_string(m.generated),
               m.decoded == 0 ? "-" : fixed(m.decode_rate(), 0, "/s"), bytes(m.reserved_bytes), bytes(m.used_bytes)});
  }
}

std::string to_json(const Options& options, const kvc::llama::Config& model, Pos steps,
                    const std::vector<PromptReport>& prompts) {
  using Json = nlohmann::ordered_json;
  Json report = {
      {"model",
       {{"file", options.model.empty() ? "embedded" : options.model},
        {"dim", model.dim},
        {"hidden_dim", model.hidden_dim},
        {"layers", model.layers},
        {"heads", model.heads},
        {"kv_heads", model.kv_heads},
        {"vocab_size", model.vocab_size},
        {"seq_len", model.seq_len}}},
      {"options",
       {{"steps", steps},
        {"temperature", options.temperature},
        {"top_p", options.top_p},
        {"seed", options.seed},
        {"element", options.element},
        {"block_tokens", options.block_tokens},
        {"chunk", options.chunk},
        {"threads", options.threads}}},
      {"prompts", Json::array()},
  };
  for (const PromptReport& prompt : prompts) {
    Json entry = {{"prompt", prompt.prompt}, {"text", prompt.text}, {"policies", Json::array()}};
    for (const Measurement& m : prompt.policies) {
      const kvc::Stats& s = m.stats;
      entry["policies"].push_back({
          {"policy", m.policy},
          {"prompt_tokens", m.prompt_tokens},
          {"computed_tokens", m.computed},
          {"reused_tokens", m.reused},
          {"generated_tokens", m.generated},
          {"ttft_seconds", m.prefill_seconds},
          {"prefill_tokens_per_second", m.computed / m.prefill_seconds},
          {"decode_seconds", m.decode_seconds},
          {"decode_tokens_per_second", m.decoded == 0 ? Json(nullptr) : Json(m.decode_rate())},
          {"kv_reserved_bytes", m.reserved_bytes},
          {"kv_used_bytes", m.used_bytes},
          {"stats",
           {{"block_tokens", s.block_tokens},
            {"blocks_total", s.blocks_total},
            {"blocks_free", s.blocks_free},
            {"blocks_cached", s.blocks_cached},
            {"blocks_referenced", s.blocks_referenced},
            {"largest_free_run", s.largest_free_run},
            {"tokens_stored", s.tokens_stored},
            {"tokens_reserved", s.tokens_reserved},
            {"internal_waste", s.internal_waste()},
            {"external_fragmentation", s.external_fragmentation()},
            {"hit_tokens", s.hit_tokens},
            {"hits", s.hits},
            {"misses", s.misses},
            {"merges", s.merges},
            {"evictions", s.evictions},
            {"copies", s.copies},
            {"copied_tokens", s.copied_tokens}}},
          {"tokens", m.tokens},
      });
    }
    report["prompts"].push_back(std::move(entry));
  }
  return report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace generate
