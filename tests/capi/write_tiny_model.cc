// SPDX-License-Identifier: Apache-2.0
// write_tiny_model FOLDER [SEED [wide]]: a model in the published format with random weights, a megabyte, for
// programs that want to hear and speak but need not understand. It says words, and never ends by itself.
// wide: with heads of 64, which kernels on a GPU take.
#include <sys/stat.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <random>
#include <set>
#include <string>

#include "csrc/engine/config.h"
#include "csrc/engine/json.h"
#include "csrc/engine/weights.h"
#include "tests/cpp/small_vocabulary.h"

namespace engine = earnest::engine;

namespace {

struct Sizes {
  int hidden, heads, kv_heads, layers, audio, audio_heads, audio_layers;
};
constexpr Sizes kSmall = {64, 4, 2, 2, 32, 2, 2}, kWide = {128, 2, 1, 1, 64, 1, 1};

constexpr char kConfig[] = R"({
  "architectures": ["StepAudio2ForCausalLM"],
  "model_type": "step_audio_2",
  "eos_token_id": [400, 401, 403],
  "text_config": {
    "vocab_size": 416, "hidden_size": %d, "intermediate_size": 96, "num_hidden_layers": %d,
    "num_attention_heads": %d, "num_key_value_heads": %d, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false},
  "audio_encoder_config": {
    "n_mels": 40, "n_audio_ctx": 1500, "n_audio_state": %d, "n_audio_head": %d, "n_audio_layer": %d,
    "llm_dim": %d, "kernel_size": 3, "adapter_stride": 2}
})";

std::string config_of(const Sizes& s) {
  char text[sizeof kConfig + 64];
  std::snprintf(text, sizeof text, kConfig, s.hidden, s.layers, s.heads, s.kv_heads, s.audio, s.audio_heads,
                s.audio_layers, s.hidden);
  return text;
}

// Merges that build each word from its letters.
std::vector<small::Merge> merges_of(const std::vector<std::string>& words) {
  std::vector<small::Merge> merges;
  std::set<std::string> made;
  for (const std::string& word : words) {
    for (size_t end = 2; end <= word.size(); ++end) {
      if (made.insert(word.substr(0, end)).second) {
        merges.emplace_back(word.substr(0, end - 1), word.substr(end - 1, 1));
      }
    }
  }
  return merges;
}

const std::vector<std::string> kWords = {" you", " sound", " tired", " glad", " and",
                                         " so",  " am",    " I",     " hear", " it"};

bool says(int64_t id, const std::set<int64_t>& words) { return words.contains(id) || id == '.' || id == ','; }

// Rows of the output matrix: words are likely, all else is not.
std::set<int64_t> ids_of_words() {
  std::set<int64_t> ids;
  const auto merges = merges_of(kWords);
  for (size_t i = 0; i < merges.size(); ++i) {
    for (const std::string& word : kWords) {
      if (merges[i].first + merges[i].second == word) ids.insert(256 + static_cast<int64_t>(i));
    }
  }
  return ids;
}

void append_floats(const std::string& name, const std::vector<int64_t>& shape, std::mt19937* random,
                   std::string* data) {
  const std::set<int64_t> words = ids_of_words();
  const bool norm = shape.size() == 1 && name.find("weight") != name.npos;
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  const int64_t fan_in = count / shape[0];
  std::normal_distribution<float> normal(0.0F, name == "model.embed_tokens.weight" || norm
                                                   ? 1.0F
                                                   : 1.0F / std::sqrt(static_cast<float>(fan_in)));
  for (int64_t i = 0; i < count; ++i) {
    float number = normal(*random);
    if (norm) number = 1.0F + 0.1F * number;
    if (name == "lm_head.weight") number = says(i / fan_in, words) ? 6.0F * number : 0.0F;
    data->append(reinterpret_cast<const char*>(&number), sizeof number);
  }
}

bool write(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  return file.good();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4 || (argc == 4 && std::string(argv[3]) != "wide")) {
    std::fprintf(stderr, "usage: write_tiny_model FOLDER [SEED [wide]]\n");
    return 2;
  }
  const std::string folder(argv[1]);
  mkdir(argv[1], 0777);
  const std::string sizes_and_names = config_of(argc == 4 ? kWide : kSmall);
  engine::json::Document document;
  engine::Config config;
  earnest::Status status = engine::json::Document::parse(sizes_and_names, "config", &document);
  if (status.ok()) status = engine::Config::parse(document.root(), &config);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().c_str());
    return 1;
  }
  std::mt19937 random(argc > 2 ? static_cast<uint32_t>(std::stoul(argv[2])) : 0);
  std::string header, data;
  for (const auto& [name, shape] : engine::tensor_shapes(config)) {
    std::string sizes;
    for (const int64_t size : shape) sizes.append(sizes.empty() ? "" : ",").append(std::to_string(size));
    const size_t begin = data.size();
    append_floats(name, shape, &random, &data);
    header.append(header.empty() ? "{" : ",").append(engine::json::quoted(name));
    header.append(":{\"dtype\":\"F32\",\"shape\":[").append(sizes).append("],\"data_offsets\":[");
    header.append(std::to_string(begin)).append(",").append(std::to_string(data.size())).append("]}");
  }
  header += '}';
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  file.append(header).append(data);
  if (!write(folder + "/config.json", sizes_and_names) ||
      !write(folder + "/tokenizer.json", small::definition(merges_of(kWords))) ||
      !write(folder + "/model.safetensors", file)) {
    std::fprintf(stderr, "cannot write into %s\n", argv[1]);
    return 1;
  }
  return 0;
}
