// FileStore: the contract, restarts, processes that share a directory, damage, limits and kills.
#include <fcntl.h>
#include <signal.h>
#if defined(__linux__)
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "../child_progress.hpp"
#include "../random_source.hpp"
#include "../temp_files.hpp"
#include "catch.hpp"
#include "kvc/testing/block_store_conformance.hpp"
#include "kvc/tier/file_store.hpp"
#include "store_calls.hpp"

namespace {
using namespace kvc;
using namespace kvc::tier;
using kvc_test::contains;
using kvc_test::end_of;
using kvc_test::erase;
using kvc_test::get;
using kvc_test::put;
using kvc_test::TempFolder;
using FileBlock = testing::detail::StoredBlock;

/// Files that need not outlive the test lie in memory, where there is such a folder.
std::string files_root() { return std::filesystem::exists("/dev/shm") ? "/dev/shm" : "/tmp"; }

FileStore::Config small_files(const TempFolder& folder) {
  return {.folder = folder.path(),
          .bytes = 1 << 20,
          .segment_bytes = 128 << 10,
          .threads = 2,
          .refresh = std::chrono::milliseconds(0)};
}

std::uint64_t bytes_on_disk(const TempFolder& folder) {
  std::uint64_t sum = 0;
  for (const std::string& name : folder.files()) {
    struct stat status{};
    REQUIRE(::stat(folder.file(name).c_str(), &status) == 0);
    sum += static_cast<std::uint64_t>(status.st_blocks) * 512;
  }
  return sum;
}
/// Changes one byte of a file.
void damage(const std::string& path, off_t at) {
  const int fd = ::open(path.c_str(), O_RDWR);
  REQUIRE(fd >= 0);
  unsigned char byte = 0;
  REQUIRE(::pread(fd, &byte, 1, at) == 1);
  byte ^= 0x20;
  REQUIRE(::pwrite(fd, &byte, 1, at) == 1);
  (void)::close(fd);
}
constexpr off_t first_record = 4096 + 4096;  // header, and a table of 32 entries
}  // namespace

TEST_CASE("A store in files keeps the contract", "[tier][file]") {
  const TempFolder folder(files_root());
  testing::block_store_conformance([&] { return FileStore(small_files(folder)); });
  FileStore::Config config = small_files(folder);
  config.when_full = WhenFull::refuse;
  config.durability = Durability::machine;
  testing::block_store_conformance([&] { return FileStore(config); });
}

namespace {
/// Makes the kernel refuse io_uring to this process.
bool refuse_io_uring() {
#if defined(__linux__) && defined(SYS_io_uring_setup)
  sock_filter program[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                           BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
                           BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                           BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog all{4, program};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all) == 0;
#else
  return false;
#endif
}
/// Blocks of up to three requests, read as wholes and in parts, with memory that lies in pages and that does not.
template <class Check>
void use_files(const FileStore::Config& config, Check&& check) {
  FileStore store(config);
  const auto outcome = [&](Ticket) {
    Completion ended;
    (void)tier::drain(store, TimePoint::max(), [&](const Completion& each) { ended = each; });
    return ended.outcome;
  };
  constexpr std::size_t page = 4096;
  for (const std::size_t bytes : {std::size_t{300}, 16 * page, 64 * page, 64 * page + 12, 160 * page}) {
    for (const std::size_t shift : {std::size_t{0}, std::size_t{40}}) {
      const FileBlock block(static_cast<int>(bytes + shift), bytes, 4);
      std::vector<std::byte> memory(2 * page + bytes);
      const io::ByteSpan to =
          io::ByteSpan(memory).subspan(page - reinterpret_cast<std::uintptr_t>(memory.data()) % page + shift, bytes);
      std::copy(block.bytes.begin(), block.bytes.end(), to.begin());
      const io::ConstByteSpan from = to;
      check(outcome(store.write(block.record(), std::span(&from, 1))) == StoreOutcome::done);
      for (const PartRange parts : {PartRange{0, 4}, PartRange{2, 2}}) {
        const std::size_t first = bytes / 4 * parts.first, count = bytes / 4 * parts.count;
        std::fill(to.begin(), to.end(), std::byte{0});
        const auto cut = to.subspan(first, count);
        const io::ByteSpan spans[] = {cut.first(count / 3), cut.subspan(count / 3)};
        check(outcome(store.read(block.record(), spans, parts)) == StoreOutcome::done);
        check(std::equal(cut.begin(), cut.end(), block.bytes.begin() + static_cast<std::ptrdiff_t>(first)));
        check(outcome(store.read(block.record(), std::span(&cut, 1), parts)) == StoreOutcome::done);
        check(std::equal(cut.begin(), cut.end(), block.bytes.begin() + static_cast<std::ptrdiff_t>(first)));
      }
    }
  }
  check(store.last_error().empty());
}
/// A folder on a disk: files in memory may know no direct reads.
FileStore::Config large_files(const TempFolder& folder, FileCalls calls, bool direct) {
  return {.folder = folder.path(), .bytes = 64 << 20, .threads = 2, .calls = calls, .depth = 3, .direct = direct};
}
}  // namespace

TEST_CASE("A store in files keeps the contract with io_uring, or says why it does without", "[tier][file]") {
  const TempFolder folder;
  for (const bool direct : {false, true}) {
    FileStore::Config config = small_files(folder);
    config.calls = FileCalls::io_uring;
    config.direct = direct;
    config.depth = direct ? 1 : 3;
    testing::block_store_conformance([&] { return FileStore(config); });
    use_files(large_files(folder, FileCalls::plain, direct), [](bool ok) { REQUIRE(ok); });
    use_files(large_files(folder, FileCalls::io_uring, direct), [](bool ok) { REQUIRE(ok); });
  }
  const std::string calls = FileStore(large_files(folder, FileCalls::io_uring, false)).calls();
#if defined(KVC_HAVE_LIBURING)
  REQUIRE_THAT(calls,
               contains("io_uring, 3 requests") || contains("preadv and pwritev: the system refuses io_uring: "));
#else
  REQUIRE(calls == "preadv and pwritev: the program is built without liburing");
#endif
  FileStore::Config config = small_files(folder);
  REQUIRE(FileStore(config).calls() == "preadv and pwritev");
  config.depth = 0;
  REQUIRE_THROWS_WITH(FileStore(config), contains("depth is 0"));
}

TEST_CASE("Where the kernel refuses io_uring, plain calls take its place", "[tier][file]") {
  const TempFolder folder(files_root());
  const pid_t child = ::fork();  // the refusal is for good
  REQUIRE(child >= 0);
  if (child == 0) {
    if (!refuse_io_uring()) {
      ::_exit(77);
    }
    const FileStore::Config config = large_files(folder, FileCalls::io_uring, false);
    int wrong = 0;
    use_files(config, [&](bool ok) { wrong += ok ? 0 : 1; });
    const std::string calls = FileStore(config).calls();
#if defined(KVC_HAVE_LIBURING)
    wrong += calls == "preadv and pwritev: the system refuses io_uring: Operation not permitted" ? 0 : 1;
#else
    wrong += calls == "preadv and pwritev: the program is built without liburing" ? 0 : 1;
#endif
    ::_exit(std::min(wrong, 50));
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) {
    KVC_SKIP("the system takes no filter of system calls");
  }
  REQUIRE(WEXITSTATUS(status) == 0);
}

TEST_CASE("Blocks in files are found after a restart", "[tier][file]") {
  const TempFolder folder(files_root());
  std::vector<FileBlock> blocks;
  for (int i = 0; i < 30; ++i) {
    blocks.emplace_back(i, 5000 + static_cast<std::size_t>(i) * 8, 2);
  }
  {
    FileStore store(small_files(folder));
    for (const FileBlock& block : blocks) {
      REQUIRE(put(store, block) == StoreOutcome::done);
    }
    REQUIRE(erase(store, blocks[7]) == StoreOutcome::done);
    REQUIRE(store.segments() > 1);
  }
  FileStore store(small_files(folder));
  REQUIRE(store.stats().records == 29);
  for (int i = 0; i < 30; ++i) {
    REQUIRE(get(store, blocks[static_cast<std::size_t>(i)]).outcome ==
            (i == 7 ? StoreOutcome::missing : StoreOutcome::done));
  }
}

TEST_CASE("The limit of a store in files is one on bytes of the disk", "[tier][file]") {
  const TempFolder folder(files_root());
  FileStore store(small_files(folder));
  for (int i = 0; i < 300; ++i) {
    REQUIRE(put(store, FileBlock(i, 3000 + static_cast<std::size_t>(i % 7) * 4000)) == StoreOutcome::done);
    REQUIRE(store.stats().bytes <= store.capacity());
    if (i % 10 == 0) {
      REQUIRE(bytes_on_disk(folder) <= store.capacity());
    }
  }
  REQUIRE(store.stats().evicted > 200);
  REQUIRE(get(store, FileBlock(299, 3000 + 299 % 7 * 4000)).outcome == StoreOutcome::done);
  REQUIRE(get(store, FileBlock(0, 3000)).outcome == StoreOutcome::missing);
}

TEST_CASE("The payload of a large record begins where the page cache can keep it in one piece", "[tier][file]") {
  using kvc::tier::detail::payload_at, kvc::tier::detail::record_offset, kvc::tier::detail::Segment;
  STATIC_REQUIRE(record_offset(8192, 200, 1 << 19, true) == 8192);   // a small one
  STATIC_REQUIRE(record_offset(8192, 200, 1 << 20, false) == 8192);  // where the gap would take room
  STATIC_REQUIRE(record_offset(8192, 200, 1 << 20, true) == (128 << 10) - 4096);
  STATIC_REQUIRE(record_offset((128 << 10) - 4096, 200, (2 << 20) - 1, true) == (128 << 10) - 4096);
  STATIC_REQUIRE(record_offset(65536, 5000, 4 << 20, true) == (256 << 10) - 8192);

  const TempFolder folder(files_root());
  FileStore::Config config = small_files(folder);
  config.bytes = 16 << 20;
  config.segment_bytes = 4 << 20;
  std::vector<FileBlock> blocks;
  for (int i = 0; i < 24; ++i) {
    blocks.emplace_back(i, (i % 3 == 0 ? 1000 : 1 << 20) + static_cast<std::size_t>(i) * 8000, 2);
  }
  {
    FileStore store(config);
    for (const FileBlock& block : blocks) {
      REQUIRE(put(store, block) == StoreOutcome::done);
      REQUIRE(store.stats().bytes <= store.capacity());  // gaps take no room
      REQUIRE(bytes_on_disk(folder) <= store.capacity());
    }
    REQUIRE(store.stats().bytes > store.capacity() / 2);  // nor are segments closed early for them
    REQUIRE(store.segments() <= 8);
  }
  int error = 0, large = 0;
  const TempFolder other(files_root());
  const std::optional<Segment> made = Segment::create(other.file("1.kvcseg"), 32, 1, error);
  REQUIRE(made);
  for (const std::string& name : folder.files()) {
    const std::optional<Segment> segment = Segment::open(folder.file(name), false);
    REQUIRE(segment);
    std::vector<kvc::tier::detail::SegmentEntry> table;
    REQUIRE(segment->read_table(table) == 0);
    for (const auto& entry : table) {
      const std::uint64_t begin = entry.offset + payload_at(entry.head_bytes, entry.payload_bytes);
      if (entry.payload_bytes >= (1 << 20)) {
        ++large;
        REQUIRE((begin % (128 << 10) == 0 || !made->makes_holes));
      }
    }
  }
  REQUIRE(large > 1);
  const FileStore store(config);
  REQUIRE(store.stats().bytes <= store.capacity());
}

TEST_CASE("Sparse files are joined, and their records stay", "[tier][file]") {
  const TempFolder folder(files_root());
  std::vector<FileBlock> blocks;
  for (int i = 0; i < 100; ++i) {
    blocks.emplace_back(i, 7000);
  }
  FileStore store(small_files(folder));
  for (const FileBlock& block : blocks) {
    REQUIRE(put(store, block) == StoreOutcome::done);
  }
  const std::size_t before = store.segments();
  REQUIRE(before >= 7);
  for (std::size_t i = 0; i < 100; ++i) {
    if (i % 5 != 0) {
      REQUIRE(erase(store, blocks[i]) == StoreOutcome::done);
    }
  }
  for (int i = 0; i < 12'000 && folder.files().size() > before / 2; ++i) {  // threads do it behind us
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  REQUIRE(folder.files().size() <= before / 2);
  for (std::size_t i = 0; i < 100; ++i) {
    REQUIRE(get(store, blocks[i]).outcome == (i % 5 == 0 ? StoreOutcome::done : StoreOutcome::missing));
  }
}

TEST_CASE("A damaged, truncated or foreign record in a file is refused, and is a miss from then on", "[tier][file]") {
  const FileBlock block(1, 5000);
  const auto refusal = [&](auto spoil) {
    const TempFolder folder(files_root());
    {
      FileStore store(small_files(folder));
      REQUIRE(put(store, block) == StoreOutcome::done);
    }
    spoil(folder.file(folder.files().at(0)));
    FileStore store(small_files(folder));
    const Completion ended = get(store, block);
    if (ended.outcome == StoreOutcome::refused) {
      REQUIRE(store.stats().refused == 1);
      REQUIRE(get(store, block).outcome == StoreOutcome::missing);
    }
    REQUIRE(put(store, block) == StoreOutcome::done);
    REQUIRE(get(store, block).outcome == StoreOutcome::done);
    return ended.outcome == StoreOutcome::refused ? ended.refusal : Refusal::none;
  };
  REQUIRE(refusal([](const std::string& path) { damage(path, first_record); }) == Refusal::no_record);
  REQUIRE(refusal([](const std::string& path) { damage(path, first_record + 100); }) == Refusal::head_checksum);
  REQUIRE(refusal([](const std::string& path) { damage(path, first_record + 4000); }) == Refusal::payload_checksum);
  // A damaged entry or header, or a file that is cut off: the record is not there.
  REQUIRE(refusal([](const std::string& path) { damage(path, 4096 + 5); }) == Refusal::none);
  REQUIRE(refusal([](const std::string& path) { damage(path, 0); }) == Refusal::none);
  REQUIRE(refusal([](const std::string& path) { REQUIRE(::truncate(path.c_str(), first_record + 1000) == 0); }) ==
          Refusal::none);
  REQUIRE(refusal([](const std::string& path) { REQUIRE(::truncate(path.c_str(), 10) == 0); }) == Refusal::none);
  // A record that another block left under the key.
  const TempFolder folder(files_root());
  FileStore store(small_files(folder));
  FileBlock other(2, 5000);
  other.info.key = block.info.key;
  REQUIRE(put(store, other) == StoreOutcome::done);
  REQUIRE(get(store, block).refusal == Refusal::tokens);
  REQUIRE(get(store, other).outcome == StoreOutcome::done);  // it is not damaged: it stays
}

TEST_CASE("Tables with right checksums of files that somebody made cost no more memory than their bytes",
          "[tier][file]") {
  using kvc::tier::detail::Segment, kvc::tier::detail::SegmentEntry;
  const TempFolder folder(files_root());
  const auto make = [&](std::uint64_t number, std::uint32_t entries) {
    int error = 0;
    std::optional<Segment> made =
        Segment::create(folder.file(std::to_string(number) + ".kvcseg"), entries, number, error);
    REQUIRE(made);
    return std::move(*made);
  };
  for (std::uint64_t i = 0; i < 200; ++i) {  // headers that announce tables of 128 MiB each
    const Segment segment = make(i, 1 << 20);
    REQUIRE(::truncate(segment.path().c_str(), 4096 + 100) == 0);
  }
  {
    const Segment segment = make(1000, 32);
    REQUIRE(::truncate(segment.path().c_str(), off_t{1} << 33) == 0);  // a hole
    SegmentEntry entry{};
    entry.state = SegmentEntry::live;
    const auto write = [&](std::uint32_t number, std::uint64_t offset, std::uint32_t head, std::uint64_t payload) {
      entry.key.bytes[0] = static_cast<std::byte>(number + 1);
      entry.offset = offset;
      entry.head_bytes = head;
      entry.payload_bytes = payload;
      REQUIRE(segment.write_entry(number, entry) == 0);
    };
    write(0, 8192, 0xffff'f000U, 4096);                   // a head of 4 GiB
    write(1, 8192, 4096, ~std::uint64_t{0} - 4095);       // a sum that wraps around
    write(2, 0, 4096, 4096);                              // over the header, and
    write(3, 4096, 4096, 4096);                           // over the table
    write(4, (std::uint64_t{1} << 33) - 4096, 4096, 10);  // behind the end
    write(5, 8192, 400, 1000);
  }
  const auto most_memory = [] {
    struct rusage usage{};
    REQUIRE(::getrusage(RUSAGE_SELF, &usage) == 0);
    return usage.ru_maxrss;  // KiB
  };
  const long before = most_memory();
  const FileStore store(small_files(folder));
  REQUIRE(most_memory() - before < 64 << 10);
  REQUIRE(store.stats().records == 1);
}

TEST_CASE("Stores that share a directory find each other's blocks", "[tier][file]") {
  const TempFolder folder(files_root());
  const FileBlock a(1, 9000), b(2, 9000), c(3, 700);
  FileStore first(small_files(folder));
  {
    FileStore second(small_files(folder));
    REQUIRE(put(first, a) == StoreOutcome::done);
    REQUIRE(get(second, a).outcome == StoreOutcome::done);
    REQUIRE(put(second, b) == StoreOutcome::done);
    REQUIRE(get(first, b).outcome == StoreOutcome::done);
    // What the owner erases is gone for the other, which had found it.
    REQUIRE(erase(second, b) == StoreOutcome::done);
    REQUIRE(get(first, b).outcome == StoreOutcome::missing);
    // What another erases is only gone for him.
    REQUIRE(erase(second, a) == StoreOutcome::done);
    REQUIRE(get(second, a).outcome == StoreOutcome::missing);
    REQUIRE(get(first, a).outcome == StoreOutcome::done);
    REQUIRE(put(second, c) == StoreOutcome::done);
    REQUIRE(first.stats().bytes <= 1 << 20);
  }
  // The second is gone: its segments are the first's at the next look.
  REQUIRE(get(first, FileBlock(9, 10)).outcome == StoreOutcome::missing);
  REQUIRE(get(first, c).outcome == StoreOutcome::done);
  REQUIRE(erase(first, c) == StoreOutcome::done);
  FileStore third(small_files(folder));
  REQUIRE(get(third, c).outcome == StoreOutcome::missing);
  REQUIRE(get(third, a).outcome == StoreOutcome::done);
}

TEST_CASE("Other files of a directory are left alone, and a segment that nobody finished is removed", "[tier][file]") {
  const TempFolder folder(files_root());
  folder.write("notes.txt", "mine");
  folder.write("text.kvcseg", "no segment");
  folder.write("0.kvcseg.new", "half a header");
  FileStore store(small_files(folder));
  REQUIRE(folder.files() == std::vector<std::string>{"notes.txt", "text.kvcseg"});
  REQUIRE(put(store, FileBlock(1, 100)) == StoreOutcome::done);
  REQUIRE(folder.read("notes.txt") == "mine");
}

TEST_CASE("The times of files do not matter", "[tier][file]") {
  const TempFolder folder(files_root());
  const FileBlock block(1, 5000);
  FileBlock other(2, 5000);
  other.info.key = block.info.key;
  FileStore::Config config = small_files(folder);
  config.segment_bytes = 4096;  // a segment for each record
  std::vector<std::string> segments;
  {
    FileStore store(config);
    REQUIRE(put(store, other) == StoreOutcome::done);
    segments = folder.files();
    REQUIRE(segments.size() == 1);
    // As if the process had been killed between the commit of a second record and the erasure of the first one.
    std::filesystem::copy_file(folder / segments[0], folder / "copy");
    REQUIRE(put(store, block) == StoreOutcome::done);
  }
  std::filesystem::rename(folder / "copy", folder / segments[0]);
  segments = folder.files();
  REQUIRE(segments.size() == 2);
  for (const bool is_first_old : {true, false}) {
    // The clock was set back by decades, or forth.
    const timespec early[2] = {{1, 0}, {1, 0}}, late[2] = {{4000000000, 0}, {4000000000, 0}};
    const TempFolder again(files_root());
    for (const std::string& name : segments) {
      std::filesystem::copy_file(folder / name, again / name);
      const bool is_early = (name == segments[0]) == is_first_old;
      REQUIRE(::utimensat(AT_FDCWD, again.file(name).c_str(), is_early ? early : late, 0) == 0);
    }
    FileStore::Config copied = config;
    copied.folder = again.path();
    FileStore store(copied);
    REQUIRE(get(store, block).outcome == StoreOutcome::done);  // the later one, by the order of the segments
    REQUIRE(get(store, other).outcome == StoreOutcome::refused);
    REQUIRE(put(store, FileBlock(3, 5000)) == StoreOutcome::done);
    REQUIRE(get(store, FileBlock(3, 5000)).outcome == StoreOutcome::done);
  }
}

TEST_CASE("A directory that cannot be used is an error at once, or makes writes fail", "[tier][file]") {
  const TempFolder folder(files_root());
  folder.write("file", "");
  REQUIRE_THROWS_AS(FileStore({.folder = folder / "file"}), std::system_error);
  REQUIRE_THROWS_WITH(FileStore({.folder = folder / "file" / "below"}), contains("cannot keep blocks in"));
  REQUIRE_THROWS_WITH(FileStore({.folder = ""}), contains("folder"));
  REQUIRE_THROWS_WITH(FileStore({.folder = folder / "x", .threads = 0}), contains("threads is 0"));

  const FileBlock block(1, 3000), other(2, 3000);
  FileStore::Config config = small_files(folder);
  config.folder = folder / "new" / "below";
  {
    FileStore store(config);
    REQUIRE(put(store, block) == StoreOutcome::done);
  }
  // Read-only, for a process that is not root.
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    std::filesystem::permissions(config.folder, std::filesystem::perms(0555));
    for (const auto& each : std::filesystem::directory_iterator(config.folder)) {
      std::filesystem::permissions(each.path(), std::filesystem::perms(0444));
    }
    std::filesystem::permissions(folder.path(), std::filesystem::perms(0755));
    int answer = ::geteuid() == 0 && ::seteuid(65534) != 0 ? 99 : 0;
    if (answer == 0) {
      FileStore store(config);
      std::vector<std::byte> to(3000);
      const io::ByteSpan into = to;
      const io::ConstByteSpan from = other.bytes;
      const auto outcome = [&](Ticket) {
        Completion ended;
        (void)tier::drain(store, TimePoint::max(), [&](const Completion& each) { ended = each; });
        return ended.outcome;
      };
      const bool is_read =
          outcome(store.read(block.record(), std::span(&into, 1))) == StoreOutcome::done && to == block.bytes;
      const bool has_failed = outcome(store.write(other.record(), std::span(&from, 1))) == StoreOutcome::failed;
      const bool says_why = store.last_error().find("cannot make a segment in") == 0;
      const bool again = outcome(store.read(block.record(), std::span(&into, 1))) == StoreOutcome::done;
      answer = is_read && has_failed && says_why && again ? 0 : 1;
    }
    ::_exit(answer);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  REQUIRE(WEXITSTATUS(status) == 0);
}

TEST_CASE("A disk that is full makes a write `full`, and loses nothing", "[tier][file]") {
  const TempFolder folder(files_root());
  const FileBlock block(1, 3000), large(2, 100000);
  const pid_t child = ::fork();  // the limit is one of the process
  REQUIRE(child >= 0);
  if (child == 0) {
    FileStore store(small_files(folder));
    const auto outcome = [&](Ticket) {
      Completion ended;
      (void)tier::drain(store, TimePoint::max(), [&](const Completion& each) { ended = each; });
      return ended.outcome;
    };
    (void)::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{50000, 50000};
    (void)::setrlimit(RLIMIT_FSIZE, &limit);
    const io::ConstByteSpan small = block.bytes, much = large.bytes;
    std::vector<std::byte> to(3000);
    const io::ByteSpan into = to;
    const bool is_written = outcome(store.write(block.record(), std::span(&small, 1))) == StoreOutcome::done;
    const bool is_full = outcome(store.write(large.record(), std::span(&much, 1))) == StoreOutcome::full;
    const bool is_read = outcome(store.read(block.record(), std::span(&into, 1))) == StoreOutcome::done;
    const bool has_one = store.stats().records == 1;
    ::_exit((is_written ? 0 : 1) + (is_full ? 0 : 2) + (is_read ? 0 : 4) + (has_one ? 0 : 8));
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  REQUIRE(WEXITSTATUS(status) == 0);
  FileStore store(small_files(folder));
  REQUIRE(get(store, block).outcome == StoreOutcome::done);
  REQUIRE(get(store, large).outcome == StoreOutcome::missing);
}

TEST_CASE("A process that is killed while it writes leaves each record whole or none", "[tier][file]") {
  const TempFolder folder(files_root());
  kvc_test::Random random(kvc_test::seed_or(19));
  constexpr int numbers = 40;
  int found = 0, absent = 0;
  const int kills = kvc_test::cases_or(200);
  for (int kill = 0; kill < kills; ++kill) {
    CAPTURE(kill);
    kvc_test::ChildProgress progress;
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      FileStore store(small_files(folder));
      for (int i = kill;; ++i) {  // writes, replaces and erases
        const FileBlock block(i % numbers, 2000 + static_cast<std::size_t>(i % numbers) * 400);
        const io::ConstByteSpan span = block.bytes;
        (void)store.erase(FileBlock((i + 7) % numbers, 0).info.key);
        (void)store.write(block.record(), std::span(&span, 1));
        (void)tier::drain(store, TimePoint::max(), [](const Completion&) {});
        progress.tell();
      }
    }
    if (kill % 2 == 1) {  // the others may be killed before they write anything
      progress.await();
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random.between(0, 5000)));
    REQUIRE(::kill(child, SIGKILL) == 0);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
    FileStore store(small_files(folder));
    for (int i = 0; i < numbers; ++i) {
      const FileBlock block(i, 2000 + static_cast<std::size_t>(i) * 400);
      const StoreOutcome outcome = get(store, block).outcome;
      REQUIRE((outcome == StoreOutcome::done || outcome == StoreOutcome::missing));  // never refused: no half record
      ++(outcome == StoreOutcome::done ? found : absent);
    }
    REQUIRE(bytes_on_disk(folder) <= store.capacity());
  }
  REQUIRE(found > 0);
  REQUIRE(absent > 0);
}

TEST_CASE("A record that takes the place of the last one of its segment keeps the segment", "[tier][file]") {
  using kvc::tier::detail::Segment, kvc::tier::detail::SegmentDirectory, kvc::tier::detail::SegmentEntry;
  const TempFolder folder(files_root());
  BlockKey key{};
  key.bytes[0] = std::byte{1};
  SECTION("written while others filled the segment") {
    SegmentDirectory directory({folder.path(), 1 << 20, 64 << 10, WhenFull::evict, std::chrono::milliseconds(0)});
    int error = 0;
    const auto old = directory.allocate(400, 4000, true, error);
    REQUIRE((old && directory.commit(*old, key, {}) == 0));
    const auto place = directory.allocate(400, 4000, true, error);
    const auto large = directory.allocate(400, 60'000, true, error);
    REQUIRE((place && large));
    REQUIRE(place->place.segment == old->place.segment);
    REQUIRE(large->place.segment != old->place.segment);
    REQUIRE(directory.commit(*place, key, {}) == 0);
    const auto found = directory.find(key);
    REQUIRE((found && found->place == place->place));
    directory.abandon(*large);
    REQUIRE(directory.erase(key));
    REQUIRE(directory.segments() == 1);
  }
  SECTION("by a process that was killed before it erased the old one") {
    {
      int error = 0;
      const std::optional<Segment> segment = Segment::create(folder.file("1.kvcseg"), 32, 1, error);
      REQUIRE(segment);
      REQUIRE(::truncate(segment->path().c_str(), 64 << 10) == 0);
      SegmentEntry entry{};
      entry.key = key;
      entry.state = SegmentEntry::live;
      entry.head_bytes = 400;
      entry.payload_bytes = 1000;
      for (const std::uint32_t number : {0U, 1U}) {
        entry.offset = 8192 + 4096 * number;
        REQUIRE(segment->write_entry(number, entry) == 0);
      }
    }
    SegmentDirectory directory({folder.path(), 1 << 20, 64 << 10, WhenFull::evict, std::chrono::milliseconds(0)});
    const auto found = directory.find(key);
    REQUIRE((found && found->place.offset == 8192 + 4096));
    REQUIRE(folder.files().size() == 1);
  }
}

TEST_CASE("A store in files is used from one thread while its own work", "[tier][file][threads]") {
  const TempFolder folder(files_root());
  FileStore::Config config = small_files(folder);
  config.bytes = 256 << 10;
  config.segment_bytes = 32 << 10;
  config.threads = 4;
  std::vector<FileBlock> blocks;
  for (int i = 0; i < 24; ++i) {
    blocks.emplace_back(i, 1000 + static_cast<std::size_t>(i) * 700, 2);
  }
  kvc_test::Random random(kvc_test::seed_or(5));
  struct UnderWay {
    Ticket ticket;
    std::size_t block;
    std::vector<std::byte> to;
  };
  std::vector<UnderWay> reads;  // outlives the store, whose reads write to it until they have ended
  FileStore store(config);
  int done = 0;
  for (int i = 0; i < 1500; ++i) {
    const std::size_t number = random.between<std::size_t>(0, blocks.size() - 1);
    const FileBlock& block = blocks[number];
    const io::ConstByteSpan from = block.bytes;
    switch (random.between(0, 5)) {
      case 0:
        (void)store.erase(block.info.key);
        break;
      case 1:
      case 2:
        (void)store.write(block.record(), std::span(&from, 1));
        break;
      default: {
        reads.push_back({0, number, std::vector<std::byte>(block.bytes.size())});
        const io::ByteSpan into = reads.back().to;
        reads.back().ticket = store.read(block.record(), std::span(&into, 1));
      }
    }
    while (store.under_way() > 12) {
      (void)store.wait(TimePoint::max());
      while (const auto ended = store.poll()) {
        REQUIRE(ended->outcome != StoreOutcome::failed);
        if (ended->operation != StoreOperation::read) {
          continue;
        }
        const auto read =
            std::find_if(reads.begin(), reads.end(), [&](const UnderWay& r) { return r.ticket == ended->ticket; });
        REQUIRE(read != reads.end());
        REQUIRE(ended->outcome != StoreOutcome::refused);
        if (ended->outcome == StoreOutcome::done) {
          REQUIRE(read->to == blocks[read->block].bytes);
          ++done;
        }
        reads.erase(read);
      }
    }
  }
  REQUIRE(done > 50);
  REQUIRE(store.stats().bytes <= config.bytes);
}
