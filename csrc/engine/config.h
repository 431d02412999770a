// SPDX-License-Identifier: Apache-2.0
// The published config.json of StepAudio2ForCausalLM, read as python/earnest/model/config.py reads it, with
// bounds on every number. Keys that do not change the arithmetic are passed over.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/engine/json.h"
#include "kernels/common/status.h"

namespace earnest::engine {

// The Qwen2-type decoder.
struct TextConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t max_position_embeddings = 16384;
  double rms_norm_eps = 1e-6;
  double rope_theta = 1e6;
  bool tie_word_embeddings = false;
  std::vector<int64_t> eos_token_ids;  // may be empty

  int64_t head_dim() const { return hidden_size / num_attention_heads; }
};

// How many of the T mel frames of a clip count: T - 2 (the two that only the padding made; the published
// Python code), or all (the published server). Their token counts differ for a quarter of all lengths.
enum class AudioLength { kHf, kVllm };

// The Whisper-type encoder and the adaptor behind it.
struct EncoderConfig {
  int64_t n_mels = 0;
  int64_t n_audio_state = 0;
  int64_t n_audio_head = 0;
  int64_t n_audio_layer = 0;
  int64_t llm_dim = 0;
  int64_t n_audio_ctx = 1500;
  bool avg_pool = true;
  AudioLength audio_len = AudioLength::kHf;

  int64_t head_dim() const { return n_audio_state / n_audio_head; }

  // Of a clip of `frames` mel frames: encoder positions, those that may be attended to, the frames that the
  // adaptor can see, and adaptor frames, that is decoder positions.
  int64_t positions(int64_t frames) const { return (frames + 1) / 2; }
  int64_t valid_positions(int64_t frames) const;
  int64_t kept_frames(int64_t frames) const;
  int64_t audio_tokens(int64_t frames) const;
};

// How the decoder's matrices are kept; see quantization.h.
enum class Quantization { kNone, kInt8, kInt4 };
const char* name_of(Quantization quantization);  // "none", "int8", "int4"

struct Config {
  TextConfig text;
  EncoderConfig audio;
  Quantization quantization = Quantization::kNone;  // of the checkpoint's files

  static Status parse(const json::Value& root, Config* config);
  static Status load(const std::string& folder, Config* config);  // its config.json
};

}  // namespace earnest::engine
