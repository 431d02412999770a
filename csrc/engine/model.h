// SPDX-License-Identifier: Apache-2.0
// A whole audio language model: its config, its weights, and the forward passes over them. Nothing here
// changes after loading but by refresh(), so that many sessions share one model, each thread with an arena of
// its own.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "csrc/engine/adaptor.h"
#include "csrc/engine/arena.h"
#include "csrc/engine/config.h"
#include "csrc/engine/decode_graphs.h"
#include "csrc/engine/decoder.h"
#include "csrc/engine/encoder.h"
#include "csrc/engine/head.h"
#include "csrc/engine/weights.h"
#include "kernels/common/status.h"

namespace earnest::engine {

class Model {
 public:
  // A folder in the published format. quantization: of plain weights, as they are loaded; a folder that
  // `earnest quantize` wrote has its own. place: where weights lie and forward passes run, whichever thread
  // asks. products: who multiplies there by weights that are no codes.
  static Status load(const std::string& folder, Precision precision, std::shared_ptr<Model>* model,
                     Quantization quantization = Quantization::kNone, const Place& place = {},
                     Products products = Products::kOurs);

  // The same from tensors that lie in memory, such as a trainer's. They stay there as long as the model does.
  static Status create(const Config& config, Tensors tensors, Precision precision,
                       std::shared_ptr<Model>* model, Quantization quantization = Quantization::kNone,
                       const Place& place = {}, Products products = Products::kOurs);

  // Reads all tensors again, after they have changed where they lie. No forward pass may run meanwhile.
  Status refresh();

  const Config& config() const { return config_; }
  Precision precision() const { return weights_.precision(); }
  const Place& place() const { return weights_.place(); }
  Device device() const { return weights_.device(); }
  Products products() const { return weights_.products(); }
  Quantization quantization() const { return quantization_; }  // of the decoder's weights
  size_t weight_bytes() const { return weights_.bytes() + head_.bytes(); }

  // What goes into a pass and comes out lies in memory of the host, and so does the arena, wherever it runs.
  // One chunk -> embeddings [config().audio.audio_tokens(frames), hidden_size].
  Status hear(const Sound& sound, void* embeddings, Arena* arena) const;

  // See Decoder::run and Head.
  bool has_scores() const { return head_.has_scores(); }
  Status scores(const void* hidden, int64_t rows, float* logits, logprob::RowNorm* norms, Arena* arena) const;
  Status forward(const std::vector<Segment>& segments, void* hidden, Arena* arena) const;
  Status logits(const void* hidden, int64_t rows, float* logits, Arena* arena,
                std::span<Drawing> drawings = {}) const;
  Status logprob(const void* hidden, int64_t rows, const int64_t* targets, double temperature, float* logp,
                 float* entropy, Arena* arena) const;

  // forward of one wanted token of each segment, and logits of all, with their bits; on a GPU as a graph
  // where `graphs` can make one (decode_graphs.h), those of `drawings` drawn there if they can be. Graphs
  // belong to this model alone.
  Status decode(const std::vector<Segment>& segments, std::span<Drawing> drawings, void* hidden,
                float* logits, Arena* arena, DecodeGraphs* graphs) const;

 private:
  Model(const Config& config, Tensors tensors, Precision precision, Quantization quantization,
        const Place& place, Products products)
      : config_(config),
        quantization_(quantization),
        weights_(std::move(tensors), precision, config, quantization, place, products) {}

  Config config_;
  Quantization quantization_;
  Weights weights_;
  Encoder encoder_;
  Adaptor adaptor_;
  Decoder decoder_;
  Head head_;
  int64_t refreshed_ = 0;  // times
};

}  // namespace earnest::engine
