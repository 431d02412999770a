// SPDX-License-Identifier: Apache-2.0
// Loading, text to ids and back.
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "csrc/include/earnest.h"
#include "tests/cpp/check.h"

namespace {

earnest_model* load(earnest_weights weights = EARNEST_WEIGHTS_AS_STORED) {
  earnest_model_params params;
  earnest_model_params_default(&params, sizeof params);
  params.weights = weights;
  earnest_model* model = nullptr;
  CHECK(earnest_model_load(TINY_MODEL, &params, &model) == EARNEST_OK);
  return model;
}

// A copy of the tiny model in which one file says something else, or is not there.
class Changed {
 public:
  Changed(const std::string& name, const std::string& text) {
    std::filesystem::remove_all(folder_);
    std::filesystem::copy(TINY_MODEL, folder_);
    std::filesystem::remove(folder_ / name);
    if (!text.empty()) std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  ~Changed() { std::filesystem::remove_all(folder_); }
  const Changed& without(const std::string& name) const {
    std::filesystem::remove(folder_ / name);
    return *this;
  }
  earnest_status load() const {
    earnest_model* model = nullptr;
    const earnest_status status = earnest_model_load(folder_.c_str(), nullptr, &model);
    CHECK((status == EARNEST_OK) == (model != nullptr));
    earnest_model_destroy(model);
    return status;
  }

 private:
  std::filesystem::path folder_ = std::filesystem::path(SCRATCH) / "changed_model";
};

std::string read(const std::string& name) {
  std::ifstream file(std::filesystem::path(TINY_MODEL) / name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST(a_model_says_what_it_is) {
  earnest_model* model = load();
  const std::string info = earnest_model_info(model);
  for (const char* part : {"\"precision\":\"float32\"", "\"context\":2048", "\"eot\":403"}) {
    CHECK(info.find(part) != std::string::npos);
  }
  earnest_model_retain(model);
  earnest_model_destroy(model);
  CHECK(info == earnest_model_info(model));
  earnest_model_destroy(model);
  earnest_model* small = load(EARNEST_WEIGHTS_BFLOAT16);
  CHECK(std::strstr(earnest_model_info(small), "\"precision\":\"bfloat16\"") != nullptr);
  earnest_model_destroy(small);
  for (const auto& [weights, name] : {std::pair{EARNEST_WEIGHTS_INT8, "\"quantization\":\"int8\""},
                                      {EARNEST_WEIGHTS_INT4, "\"quantization\":\"int4\""}}) {
    earnest_model* quantised = load(weights);
    CHECK(std::strstr(earnest_model_info(quantised), name) != nullptr);
    earnest_model_destroy(quantised);
  }
  CHECK(earnest_model_info(nullptr) == nullptr);
  earnest_model_retain(nullptr);
  earnest_model_destroy(nullptr);
}

TEST(weights_that_no_name_stands_for) {
  earnest_model_params params;
  earnest_model_params_default(&params, sizeof params);
  const int number = 77;
  std::memcpy(&params.weights, &number, sizeof number);
  earnest_model* model = nullptr;
  CHECK(earnest_model_load(TINY_MODEL, &params, &model) == EARNEST_INVALID_ARGUMENT && !model);
  CHECK(std::strcmp(earnest_last_error(), "[load] weights: expected one of earnest_weights, got 77") == 0);
  CHECK(earnest_model_load(TINY_MODEL, nullptr, nullptr) == EARNEST_INVALID_ARGUMENT);
}

TEST(a_device_is_one_that_is_there_and_can_run_the_model) {
  earnest_model_params params;
  earnest_model_params_default(&params, sizeof params);
  params.weights = EARNEST_WEIGHTS_BFLOAT16;
  earnest_model* model = nullptr;
  params.device = "cuda";
  CHECK(earnest_model_load(TINY_MODEL, &params, &model) == EARNEST_UNSUPPORTED && !model);
  const std::string why = earnest_last_error();  // without a GPU, and with one
  CHECK(why == "[engine] device: expected cpu (earnest was built without CUDA), got cuda" ||
        why.find("[engine] device: expected a CUDA device of compute capability 8.0 or more, got none") ==
            0 ||
        why.find("heads: expected a size of 64 or 128 on cuda, got") != std::string::npos);
  for (const std::string name : {"tpu", "cuda:", "cuda:one"}) {
    params.device = name.c_str();
    CHECK(earnest_model_load(TINY_MODEL, &params, &model) == EARNEST_INVALID_ARGUMENT && !model);
    CHECK(earnest_last_error() == "[engine] device: expected cpu, cuda or cuda:N, got " + name);
  }
  params.device = "cuda:99";
  CHECK(earnest_model_load(TINY_MODEL, &params, &model) == EARNEST_UNSUPPORTED && !model);
  const std::string none = earnest_last_error();
  CHECK(none == "[engine] device: expected cpu (earnest was built without CUDA), got cuda" ||
        none.find("[engine] device: expected a CUDA device of compute capability 8.0 or more, got none") ==
            0 ||
        (none.find("[engine] device: expected cuda:0") == 0 && none.ends_with("got cuda:99")));
  params.device = "cpu";
  CHECK(earnest_model_load(TINY_MODEL, &params, &model) == EARNEST_OK);
  CHECK(std::strstr(earnest_model_info(model), R"("device":"cpu")"));
  earnest_model_destroy(model);
}

TEST(loading_reports_and_gives_up) {
  earnest_model_params params;
  earnest_model_params_default(&params, sizeof params);
  std::vector<double> seen;
  params.progress_user_data = &seen;
  params.progress = [](double fraction, void* user_data) {
    static_cast<std::vector<double>*>(user_data)->push_back(fraction);
    return 0;
  };
  earnest_model* model = nullptr;
  CHECK(earnest_model_load(TINY_MODEL, &params, &model) == EARNEST_OK);
  earnest_model_destroy(model);
  CHECK(seen.size() >= 3 && seen.front() == 0.0 && seen.back() == 1.0);
  CHECK(std::is_sorted(seen.begin(), seen.end()));
  params.progress = [](double fraction, void*) { return fraction > 0.1 ? 1 : 0; };
  CHECK(earnest_model_load(TINY_MODEL, &params, &model) == EARNEST_CANCELLED && model == nullptr);
}

TEST(folders_that_are_none) {
  earnest_model* model = nullptr;
  CHECK(earnest_model_load("", nullptr, &model) == EARNEST_NOT_FOUND);
  CHECK(earnest_model_load(TINY_MODEL "/config.json", nullptr, &model) == EARNEST_INVALID_ARGUMENT);
  CHECK(Changed("config.json", "").load() == EARNEST_NOT_FOUND);
  CHECK(Changed("tokenizer.json", "").load() == EARNEST_NOT_FOUND);
  CHECK(Changed("model.safetensors", "").load() == EARNEST_NOT_FOUND);
  CHECK(Changed("config.json", "{").load() == EARNEST_CORRUPT_MODEL);
  CHECK(Changed("config.json", R"({"model_type":"llama"})").load() == EARNEST_UNSUPPORTED_MODEL);
  CHECK(Changed("tokenizer.json", "[]").load() == EARNEST_CORRUPT_MODEL);
  CHECK(Changed("model.safetensors", "12345678").load() == EARNEST_CORRUPT_MODEL);
  // Whether words are there is looked at before any weights are read, which can take long.
  CHECK(Changed("model.safetensors", "12345678").without("tokenizer.json").load() == EARNEST_NOT_FOUND);
  const std::string whole = read("model.safetensors");
  CHECK(Changed("model.safetensors", whole.substr(0, whole.size() - 4)).load() == EARNEST_CORRUPT_MODEL);
  CHECK(Changed("model.safetensors", whole).load() == EARNEST_OK);
}

TEST(text_becomes_ids_and_comes_back) {
  earnest_model* model = load();
  const std::string text = "I hear you <|EOT|> \xE2\x82\xAC";
  size_t count = 0;
  CHECK(earnest_tokenize(model, text.data(), text.size(), 0, nullptr, 0, &count) == EARNEST_INVALID_ARGUMENT);
  CHECK(count > 5);
  std::vector<int32_t> ids(count, -1);
  size_t again = 0;
  CHECK(earnest_tokenize(model, text.data(), text.size(), 0, ids.data(), count - 1, &again) ==
        EARNEST_INVALID_ARGUMENT);
  CHECK(again == count && ids[0] == -1);
  CHECK(earnest_tokenize(model, text.data(), text.size(), 0, ids.data(), count, &again) == EARNEST_OK);
  for (const int32_t id : ids) CHECK(id >= 0 && id < 400);  // no name became a token
  std::string back(100, '#');
  size_t bytes = 0;
  CHECK(earnest_detokenize(model, ids.data(), count, back.data(), back.size(), &bytes) == EARNEST_OK);
  CHECK(back.substr(0, bytes) == text && back[bytes] == '#');
  ids.resize(100);
  CHECK(earnest_tokenize(model, text.data(), text.size(), 1, ids.data(), 100, &again) == EARNEST_OK);
  CHECK(again < count && std::count(ids.begin(), ids.begin() + static_cast<int>(again), 403) == 1);
  CHECK(earnest_detokenize(model, ids.data(), again, back.data(), back.size(), &bytes) == EARNEST_OK);
  CHECK(back.substr(0, bytes) == text);
  earnest_model_destroy(model);
}

TEST(text_that_is_none) {
  earnest_model* model = load();
  size_t count = 7;
  int32_t ids[4] = {};
  char text[8];
  CHECK(earnest_tokenize(model, nullptr, 0, 0, nullptr, 0, &count) == EARNEST_OK && count == 0);
  CHECK(earnest_tokenize(model, nullptr, 1, 0, ids, 4, &count) == EARNEST_INVALID_ARGUMENT);
  CHECK(earnest_tokenize(nullptr, "a", 1, 0, ids, 4, &count) == EARNEST_INVALID_ARGUMENT);
  CHECK(earnest_tokenize(model, "a", 1, 0, ids, 4, nullptr) == EARNEST_INVALID_ARGUMENT);
  CHECK(earnest_tokenize(model, "a", 1, 0, nullptr, 4, &count) == EARNEST_INVALID_ARGUMENT);
  CHECK(earnest_tokenize(model, "\xFF", 1, 0, ids, 4, &count) == EARNEST_INVALID_ARGUMENT);
  CHECK(earnest_tokenize(model, "a", SIZE_MAX, 0, ids, 4, &count) == EARNEST_INVALID_ARGUMENT);
  CHECK(earnest_detokenize(model, ids, SIZE_MAX, text, 8, &count) == EARNEST_INVALID_ARGUMENT);
  for (const int32_t none : {-1, 399, 100000, INT32_MAX, INT32_MIN}) {
    ids[1] = none;
    CHECK(earnest_detokenize(model, ids, 2, text, 8, &count) == EARNEST_INVALID_ARGUMENT);
    CHECK(std::strstr(earnest_last_error(), "at place 1") != nullptr);
  }
  CHECK(earnest_detokenize(model, nullptr, 0, nullptr, 0, &count) == EARNEST_OK && count == 0);
  earnest_model_destroy(model);
}
