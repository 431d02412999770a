// SPDX-License-Identifier: Apache-2.0
// config.json with any number or bytes in it, under the sanitizers.
#include <random>
#include <string>

#include "csrc/engine/config.h"
#include "tests/cpp/check.h"

using earnest::Status;
namespace engine = earnest::engine;

namespace {

const char kPublished[] = R"({"architectures": ["StepAudio2ForCausalLM"], "model_type": "step_audio_2",
  "text_config": {"vocab_size": 158720, "hidden_size": 5120, "intermediate_size": 27648,
    "num_hidden_layers": 64, "num_attention_heads": 40, "num_attention_groups": 8, "num_key_value_heads": 8,
    "max_position_embeddings": 65536, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
    "eos_token_id": [151643, 151645]},
  "audio_encoder_config": {"n_mels": 128, "n_audio_ctx": 1500, "n_audio_state": 1280, "n_audio_head": 20,
    "n_audio_layer": 32, "llm_dim": 5120, "kernel_size": 3, "adapter_stride": 2, "n_codebook_size": 4096}})";

Status parse(const std::string& text, engine::Config* config) {
  engine::json::Document document;
  const Status status = engine::json::Document::parse(text, "config.json", &document);
  return status.ok() ? engine::Config::parse(document.root(), config) : status;
}

}  // namespace

TEST(the_published_config_is_read) {
  engine::Config config;
  const Status status = parse(kPublished, &config);
  CHECK(status.ok());
  CHECK(config.text.head_dim() == 128 && config.text.num_key_value_heads == 8 &&
        !config.text.tie_word_embeddings);
  CHECK(config.text.eos_token_ids.size() == 2 && config.text.rms_norm_eps == 1e-5);
  CHECK(config.audio.head_dim() == 64 && config.audio.avg_pool);
  // 25 s: 2,502 mel frames with the two of padding, 313 tokens by both conventions.
  CHECK(config.audio.audio_tokens(2502) == 313 && config.audio.positions(2502) == 1251);
  CHECK(config.audio.audio_tokens(0) == 0 && config.audio.audio_tokens(4) == 0);
  config.audio.audio_len = engine::AudioLength::kVllm;
  CHECK(config.audio.audio_tokens(2502) == 313 && config.audio.audio_tokens(4) == 1);
}

TEST(any_bytes_changed_do_no_harm) {
  std::mt19937 random(11);
  const std::string whole = kPublished, digits = "0123456789.eE-,:\"";
  int read = 0;
  for (int i = 0; i < 30000; ++i) {
    std::string changed = whole;
    for (uint32_t n = 1 + random() % 3; n > 0; --n) {
      changed[random() % changed.size()] =
          random() % 2 ? digits[random() % digits.size()] : static_cast<char>(random());
    }
    engine::Config config;
    if (!parse(changed, &config).ok()) continue;
    ++read;
    // Sizes of what would be allocated cannot overflow.
    const auto& text = config.text;
    CHECK(text.hidden_size <= (1 << 20) && text.vocab_size <= (1 << 24) && text.num_hidden_layers <= 1024);
    CHECK(text.head_dim() * text.num_attention_heads == text.hidden_size && text.head_dim() <= 256);
  }
  CHECK(read > 1000);
}

TEST(siblings_of_the_model_are_refused) {
  std::string text = kPublished;
  text.replace(text.find("step_audio_2\""), 13, "step_audio_2_full_duplex\"");
  engine::Config config;
  CHECK(parse(text, &config).message() ==
        "[config] model_type: expected \"step_audio_2\", got \"step_audio_2_full_duplex\"");
}
