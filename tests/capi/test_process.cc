// SPDX-License-Identifier: Apache-2.0
// Versions, names, sizes of structs, the last error and the log.
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "csrc/include/earnest.h"
#include "tests/cpp/check.h"

TEST(the_library_is_the_headers) {
  CHECK(std::strcmp(earnest_version(), EARNEST_VERSION) == 0);
  CHECK(earnest_abi_version() == EARNEST_ABI_VERSION);
  CHECK(std::strstr(earnest_build_info(), "\"version\":\"" EARNEST_VERSION "\"") != nullptr);
  CHECK(std::strstr(earnest_build_info(), "\"cpu_tier\":\"") != nullptr);
}

TEST(every_status_has_a_name) {
  CHECK(std::strcmp(earnest_status_name(EARNEST_OK), "OK") == 0);
  CHECK(std::strcmp(earnest_status_name(EARNEST_BUSY), "BUSY") == 0);
  CHECK(std::strcmp(earnest_status_name(EARNEST_UNSUPPORTED), "UNSUPPORTED") == 0);
  for (const int none : {-1, EARNEST_UNSUPPORTED + 1, 1 << 30}) {
    CHECK(std::strcmp(earnest_status_name(none), "UNKNOWN") == 0);
  }
}

TEST(errors_belong_to_the_thread_that_made_them) {
  earnest_model* model = reinterpret_cast<earnest_model*>(1);
  CHECK(earnest_model_load("/nowhere", nullptr, &model) == EARNEST_NOT_FOUND && model == nullptr);
  const std::string ours = earnest_last_error();
  CHECK(ours == "[load] folder: expected a folder, got /nowhere");
  std::thread([&] {
    CHECK(std::strcmp(earnest_last_error(), "") == 0);
    CHECK(earnest_model_load(nullptr, nullptr, &model) == EARNEST_INVALID_ARGUMENT);
    CHECK(std::strcmp(earnest_last_error(), "[load] folder: expected something, got NULL") == 0);
  }).join();
  CHECK(ours == earnest_last_error());
  // Longer than is kept: cut between characters.
  std::string folder;
  for (int i = 0; i < 2000; ++i) folder += "\xC3\xA9";
  CHECK(earnest_model_load(folder.c_str(), nullptr, &model) != EARNEST_OK);
  const std::string kept = earnest_last_error();
  CHECK(kept.size() > 900 && kept.size() < 1100 && kept.substr(kept.size() - 2) == "\xC3\xA9");
}

// What a caller of another time would hand over: `size` bytes, of which the library's struct has fewer or
// more.
template <typename Params>
struct Padded {
  alignas(Params) unsigned char bytes[2 * sizeof(Params)];
  explicit Padded(size_t size) {
    std::memset(bytes, 0, sizeof bytes);
    std::memcpy(bytes, &size, sizeof size);
  }
  Params* params() { return reinterpret_cast<Params*>(bytes); }
};

TEST(defaults_write_no_further_than_the_caller_has_room) {
  for (size_t size = 0; size <= 2 * sizeof(earnest_generation_params); ++size) {
    Padded<earnest_generation_params> padded(0);
    std::memset(padded.bytes, 0x5A, sizeof padded.bytes);
    earnest_generation_params_default(padded.params(), size);
    const bool valid = size > sizeof(size_t) && size % alignof(earnest_generation_params) == 0;
    size_t said = 0;
    std::memcpy(&said, padded.bytes, sizeof said);
    CHECK(!valid || said == size);
    for (size_t i = valid ? size : 0; i < sizeof padded.bytes; ++i) CHECK(padded.bytes[i] == 0x5A);
    for (size_t i = sizeof(earnest_generation_params); valid && i < size; ++i) CHECK(padded.bytes[i] == 0);
  }
  earnest_generation_params params;
  earnest_generation_params_default(&params, sizeof params);
  CHECK(params.struct_size == sizeof params && params.temperature == 0.7 && params.top_p == 0.9);
  CHECK(params.max_tokens == 0 && params.stop == nullptr && params.prefill == nullptr);
  earnest_generation_params_default(nullptr, sizeof params);
  earnest_model_params_default(nullptr, 0);
}

TEST(structs_of_other_times) {
  earnest_model* model = nullptr;
  // Refused before anything is read: sizes that no struct had.
  for (const size_t size : {size_t{0}, size_t{7}, sizeof(size_t), size_t{9}, size_t{1} << 20, SIZE_MAX}) {
    Padded<earnest_model_params> padded(size);
    CHECK(earnest_model_load("/nowhere", padded.params(), &model) == EARNEST_INVALID_ARGUMENT);
    CHECK(std::strstr(earnest_last_error(), "struct_size") != nullptr);
  }
  // An older caller's, down to its first field, and a newer one's whose new fields are not used.
  for (size_t size = 16; size <= 2 * sizeof(earnest_model_params); size += 8) {
    Padded<earnest_model_params> padded(size);
    CHECK(earnest_model_load("/nowhere", padded.params(), &model) == EARNEST_NOT_FOUND);
  }
  // A newer one's with a field that we do not know.
  Padded<earnest_model_params> newer(sizeof(earnest_model_params) + 8);
  newer.bytes[sizeof(earnest_model_params) + 3] = 1;
  CHECK(earnest_model_load("/nowhere", newer.params(), &model) == EARNEST_UNSUPPORTED);
  newer.bytes[0] = sizeof(earnest_model_params);  // behind its end nobody looks
  CHECK(earnest_model_load("/nowhere", newer.params(), &model) == EARNEST_NOT_FOUND);
}

TEST(log_lines_come_one_at_a_time_and_stop) {
  struct Seen {
    std::vector<std::string> lines;
  } seen;
  const auto take = [](earnest_log_level, const char* line, void* user_data) {
    static_cast<Seen*>(user_data)->lines.emplace_back(line);
  };
  earnest_log_set(take, &seen);
  earnest_model* model = nullptr;
  CHECK(earnest_model_load(TINY_MODEL, nullptr, &model) == EARNEST_OK);
  earnest_model_destroy(model);
  CHECK(!seen.lines.empty() && seen.lines.front().find("float32") != std::string::npos);
  const size_t count = seen.lines.size();
  earnest_log_set(nullptr, nullptr);
  CHECK(earnest_model_load(TINY_MODEL, nullptr, &model) == EARNEST_OK);
  earnest_model_destroy(model);
  CHECK(seen.lines.size() == count);
}
