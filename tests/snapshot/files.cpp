// Files are replaced as a whole or not at all, whatever happens to the process that writes.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "any_cache.hpp"
#include "child_progress.hpp"
#include "random_source.hpp"
#include "temp_files.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;
namespace fs = std::filesystem;

/// Where files are synchronised at once, if there is a file system in memory.
fs::path memory() { return fs::is_directory("/dev/shm") ? fs::path("/dev/shm") : fs::temp_directory_path(); }
void put(io::ByteSink& sink, std::string_view text) {
  const io::ConstByteSpan bytes = std::as_bytes(std::span(text));
  sink.write(std::span(&bytes, 1));
}
constexpr Shape shape{.layers = 2, .kv_heads = 2, .key_dim = 16};
using Cache = CacheOf<float, PrefixShared<Lru, SeededHash>, HeadMajor>;
Tokens prompt_of(Token first, int count) {
  Tokens tokens(static_cast<std::size_t>(count));
  for (Token& token : tokens) {
    token = first++;
  }
  return tokens;
}
}  // namespace

TEST_CASE("A file is replaced atomically, and leaves no temporary file", "[io][file]") {
  const TempFolder folder(memory());
  const fs::path path = folder / "a";
  io::replace_file(path, [](io::ByteSink& sink) { put(sink, "old"), put(sink, ""), put(sink, " one"); });
  REQUIRE(file_text(path) == "old one");
  fs::permissions(path, fs::perms::owner_read | fs::perms::owner_write);
  io::replace_file(path, [&](io::ByteSink& sink) {
    put(sink, "new");
    REQUIRE(file_text(path) == "old one");
    REQUIRE(folder.files() == std::vector<std::string>{"a", "a.saving"});
  });
  REQUIRE(file_text(path) == "new");
  REQUIRE(fs::status(path).permissions() == (fs::perms::owner_read | fs::perms::owner_write));
  REQUIRE_THROWS_WITH(io::replace_file(path,
                                       [](io::ByteSink& sink) {
                                         put(sink, "half");
                                         throw std::runtime_error("no more");
                                       }),
                      "no more");
  REQUIRE(file_text(path) == "new");
  REQUIRE(folder.files() == std::vector<std::string>{"a"});
  // A temporary file that a killed process left behind is used again.
  std::ofstream(folder / "a.saving") << "a longer text that nobody has finished writing";
  io::replace_file(path, [](io::ByteSink& sink) { put(sink, "short"); });
  REQUIRE(file_text(path) == "short");
  REQUIRE(folder.files() == std::vector<std::string>{"a"});
}

TEST_CASE("Errors of the system are reported with the name of the file", "[io][file]") {
  const TempFolder folder(memory());
  const auto nothing = [](io::ByteSink&) {};
  REQUIRE_THROWS_AS(io::replace_file(folder / "no/such/folder", nothing), std::system_error);
  REQUIRE_THROWS_WITH(io::replace_file(folder / "no/such/folder", nothing),
                      contains("cannot create") && contains("no/such/folder.saving"));
  fs::create_directory(folder / "is_a_folder");
  REQUIRE_THROWS_WITH(io::replace_file(folder / "is_a_folder", nothing), contains("found a directory"));
  REQUIRE(folder.files() == std::vector<std::string>{"is_a_folder"});
  if (fs::exists("/dev/full")) {
    io::FileSink full(::open("/dev/full", O_WRONLY), "/dev/full");
    REQUIRE_THROWS_WITH(put(full, "x"), contains("cannot write /dev/full"));
  }
  // Another process saves to the same path.
  const io::detail::FileHandle other = io::detail::open_locked((folder / "b.saving").string());
  REQUIRE_THROWS_WITH(io::replace_file(folder / "b", nothing), contains("another saves to the same place"));
  REQUIRE(folder.files() == std::vector<std::string>{"b.saving", "is_a_folder"});

  KvCache<float, Paged> cache(shape, {.blocks = 2});
  REQUIRE_THROWS_AS(snapshot::load(cache, folder / "nothing"), FormatError);
  REQUIRE_THROWS_WITH(snapshot::load(cache, folder / "nothing"),
                      contains("nothing: at byte 0: expected a file that can be read"));
  REQUIRE_THROWS_WITH(snapshot::load(cache, folder / "is_a_folder"), contains("a file that can be read"));
  std::ofstream(folder / "text") << "no snapshot, but long enough to be one";
  REQUIRE_THROWS_WITH(snapshot::load(cache, folder / "text"), contains("text: at byte 0: expected a kvc snapshot"));
}

TEST_CASE("Only files are replaced: a directory, FIFO, device or socket stays, and nothing is written", "[io][file]") {
  const TempFolder folder(memory());
  KvCache<float, Paged> cache(shape, {.blocks = 2});
  REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
  fs::create_directory(folder / "folder");
  std::ofstream(folder / "file") << "old";
  const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string socket_path = folder / "socket";
  REQUIRE(socket_path.size() < sizeof address.sun_path);
  std::copy(socket_path.begin(), socket_path.end(), address.sun_path);
  REQUIRE(::bind(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  fs::create_symlink("fifo", folder / "to_fifo");
  fs::create_symlink("to_fifo", folder / "to_to_fifo");
  fs::create_directory_symlink("folder", folder / "to_folder");
  fs::create_symlink("/dev/null", folder / "to_null");
  fs::create_symlink("to_itself", folder / "to_itself");
  const std::vector<std::string> before = folder.files();

  struct Case {
    const char* name;
    const char* kind;
  };
  for (const auto& [name, kind] :
       {Case{"fifo", "a FIFO"}, Case{"folder", "a directory"}, Case{"folder/", "a directory"}, Case{".", "a directory"},
        Case{"socket", "a socket"}, Case{"to_fifo", "a FIFO"}, Case{"to_to_fifo", "a FIFO"},
        Case{"to_folder", "a directory"}, Case{"to_null", "a character device"}}) {
    CAPTURE(name);
    REQUIRE_THROWS_AS(snapshot::save(cache, folder / name), std::invalid_argument);
    REQUIRE_THROWS_WITH(snapshot::save(cache, folder / name),
                        contains(name) && contains("must be a regular file or a free name") && contains(kind));
    bool called = false;
    REQUIRE_THROWS(io::replace_file(folder / name, [&](io::ByteSink&) { called = true; }));
    REQUIRE_FALSE(called);
    REQUIRE(folder.files() == before);
  }
  for (const char* device : {"/dev/null", "/dev/full", "/dev/stdout"}) {
    CAPTURE(device);
    if (fs::exists(device) && !fs::is_regular_file(device)) {
      REQUIRE_THROWS_WITH(snapshot::save(cache, device), contains(device) && contains("must be a regular file"));
      REQUIRE_FALSE(fs::exists(std::string(device) + ".saving"));
    }
  }
  REQUIRE_THROWS_AS(snapshot::save(cache, folder / "to_itself"), std::system_error);
  REQUIRE_THROWS_AS(snapshot::save(cache, ""), std::invalid_argument);
  REQUIRE(fs::is_fifo(folder / "fifo"));
  REQUIRE(fs::is_character_file("/dev/null"));
  ::close(socket);

  // The same holds for the temporary file: save neither waits for a reader of the FIFO nor removes it.
  REQUIRE(::mkfifo((folder / "a.saving").c_str(), 0600) == 0);
  REQUIRE_THROWS(snapshot::save(cache, folder / "a"));
  const int reader = ::open((folder / "a.saving").c_str(), O_RDONLY | O_NONBLOCK);
  REQUIRE_THROWS_WITH(snapshot::save(cache, folder / "a"), contains("a.saving") && contains("regular file"));
  ::close(reader);
  REQUIRE(fs::is_fifo(folder / "a.saving"));
  REQUIRE_FALSE(fs::exists(folder / "a"));
}

TEST_CASE("A link to a file, or a dangling link, is replaced itself", "[io][file]") {
  const TempFolder folder(memory());
  std::ofstream(folder / "file") << "old";
  fs::permissions(folder / "file", fs::perms::owner_read | fs::perms::owner_write);
  for (const char* target : {"file", "nowhere"}) {
    CAPTURE(target);
    fs::remove(folder / "link");
    fs::create_symlink(target, folder / "link");
    io::replace_file(folder / "link", [](io::ByteSink& sink) { put(sink, "new"); });
    REQUIRE(fs::is_regular_file(fs::symlink_status(folder / "link")));
    REQUIRE(file_text(folder / "link") == "new");
    REQUIRE(file_text(folder / "file") == "old");
    REQUIRE_FALSE(fs::exists(folder / "nowhere"));
  }
}

TEST_CASE("Spans of all sizes are written and read in order", "[io][file]") {
  const TempFolder folder(memory());
  Random random(seed_or(11));
  std::vector<std::byte> bytes(3'000'000);
  for (std::byte& b : bytes) {
    b = static_cast<std::byte>(random.between(0, 255));
  }
  const auto cut = [&](auto whole, std::size_t most) {
    std::vector<decltype(whole)> spans;
    while (!whole.empty()) {
      spans.push_back(whole.first(std::min(whole.size(), random.between<std::size_t>(0, most))));
      whole = whole.subspan(spans.back().size());
    }
    return spans;
  };
  for (const std::size_t most : {std::size_t{300}, std::size_t{9000}, std::size_t{4} << 20}) {
    io::replace_file(folder / "spans",
                     [&](io::ByteSink& sink) { sink.write(cut(std::span<const std::byte>(bytes), most)); });
    io::FileSource source(folder / "spans");
    REQUIRE(source.left() == bytes.size());
    std::vector<std::byte> back(bytes.size() + 10);
    REQUIRE(source.read(cut(std::span(back), most)) == bytes.size());
    REQUIRE(std::equal(bytes.begin(), bytes.end(), back.begin()));
    source.rewind(5);
    const std::span<std::byte> last = std::span(back).first(10);
    REQUIRE(source.read(std::span(&last, 1)) == 5);
    REQUIRE(std::equal(bytes.end() - 5, bytes.end(), back.begin()));
  }
}

TEST_CASE("A snapshot in a file equals one in memory", "[io][file]") {
  const TempFolder folder(memory());
  Cache from({.blocks = 64, .block_tokens = 4}, shape);
  from.serve(prompt_of(1, 50));
  from.serve(prompt_of(30, 20));
  snapshot::save(from.cache, folder / "s.kvc");
  io::MemorySink sink;
  snapshot::save(from.cache, sink);
  REQUIRE(file_text(folder / "s.kvc") ==
          std::string(reinterpret_cast<const char*>(sink.bytes().data()), sink.bytes().size()));
  io::FileSource source(folder / "s.kvc");
  const snapshot::Contents contents = snapshot::read_contents(source);
  REQUIRE(contents.element == "f32");
  REQUIRE(contents.policy == "prefix-shared");
  REQUIRE(contents.shape == from.cache.shape());
  REQUIRE(contents.sequences.size() == 2);
  CacheOf<float, Paged, TokenMajor> to({.blocks = 64, .block_tokens = 8}, shape);
  const snapshot::Loaded loaded = snapshot::load(to.cache, folder / "s.kvc");
  REQUIRE(to.rows(loaded.sequences[0]) == from.rows(from.sequences()[0]));
  REQUIRE(to.rows(loaded.sequences[1]) == from.rows(from.sequences()[1]));
}

TEST_CASE("A process that is killed while it saves leaves the old snapshot or the new one", "[io][file]") {
  const TempFolder folder(memory());
  const fs::path path = folder / "s.kvc";
  Cache a({.blocks = 64, .block_tokens = 16}, shape);
  Cache b({.blocks = 64, .block_tokens = 16}, shape);
  const SeqId in_a = a.serve(prompt_of(1, 700));
  const SeqId in_b = b.serve(prompt_of(5000, 900));
  snapshot::save(a.cache, path);
  Random random(seed_or(3));
  int of_b = 0;
  int interrupted = 0;
  for (int kill = 0; kill < std::min(200, kvc_test::cases_or(400)); ++kill) {
    CAPTURE(kill);
    ChildProgress progress;
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      for (;;) {
        snapshot::save(b.cache, path);
        progress.tell();
        snapshot::save(a.cache, path);
      }
    }
    if (kill % 2 == 1) {  // the others may be killed before they do anything
      progress.await();
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random.between(0, 6000)));
    REQUIRE(::kill(child, SIGKILL) == 0);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
    REQUIRE(WTERMSIG(status) == SIGKILL);
    interrupted += fs::exists(folder / "s.kvc.saving") ? 1 : 0;
    CacheOf<float, Paged, HeadMajor> to({.blocks = 64, .block_tokens = 16}, shape);
    const snapshot::Loaded loaded = snapshot::load(to.cache, path);
    const bool is_b = to.length(loaded.sequences[0]) == 900;
    REQUIRE(to.rows(loaded.sequences[0]) == (is_b ? b.rows(in_b) : a.rows(in_a)));
    of_b += is_b ? 1 : 0;
  }
  CAPTURE(of_b, interrupted);
  REQUIRE(interrupted > 0);  // else nothing was tested
  snapshot::save(a.cache, path);
  REQUIRE(folder.files() == std::vector<std::string>{"s.kvc"});
}
