// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <filesystem>
#include <future>
#include <utility>

#include "csrc/capi/call.h"
#include "csrc/capi/device.h"
#include "csrc/capi/handles.h"
#include "csrc/capi/log.h"
#include "csrc/capi/sized.h"
#include "csrc/engine/json.h"
#include "csrc/engine/mapped_file.h"
#include "csrc/engine/safetensors.h"

namespace earnest::capi {
namespace {

constexpr char kOp[] = "load";

using engine::Precision;
using engine::Quantization;
using engine::StoredType;

struct Arithmetic {
  Precision precision = Precision::kFloat32;
  Quantization quantization = Quantization::kNone;
};

// Whether the numbers that nobody quantises are float32; every other type is computed with in bfloat16.
Precision precision_of(const engine::Tensors& tensors) {
  const auto norm = tensors.views.find("model.norm.weight");
  const bool whole = norm != tensors.views.end() && norm->second.type == StoredType::kFloat32;
  return whole ? Precision::kFloat32 : Precision::kBFloat16;
}

Outcome choose_arithmetic(int weights, Quantization saved, const engine::Tensors& tensors,
                          Arithmetic* chosen) {
  switch (weights) {
    case EARNEST_WEIGHTS_AS_STORED:
      *chosen = {precision_of(tensors), saved};
      return {};
    case EARNEST_WEIGHTS_FLOAT32:
      *chosen = {Precision::kFloat32, Quantization::kNone};
      break;
    case EARNEST_WEIGHTS_BFLOAT16:
      *chosen = {Precision::kBFloat16, Quantization::kNone};
      break;
    case EARNEST_WEIGHTS_INT8:
      *chosen = {Precision::kBFloat16, Quantization::kInt8};
      break;
    case EARNEST_WEIGHTS_INT4:
      *chosen = {Precision::kBFloat16, Quantization::kInt4};
      break;
    default:
      return invalid(kOp, "weights", "one of earnest_weights", std::to_string(weights));
  }
  if (saved == Quantization::kNone || saved == chosen->quantization) return {};
  return failure(EARNEST_UNSUPPORTED, kOp, "weights",
                 std::string(engine::name_of(saved)) + ", as these are saved", "others");
}

// Those that this build and machine have there.
Outcome read_products(const earnest_model_params& params, const engine::Place& place,
                      engine::Products* products) {
  const int asked = number_of(params.products);
  if (asked < EARNEST_PRODUCTS_OURS || asked > EARNEST_PRODUCTS_VENDOR)
    return invalid(kOp, "products", "one of earnest_products", std::to_string(asked));
  if (params.reserved != 0)
    return failure(EARNEST_UNSUPPORTED, kOp, "reserved", "0", std::to_string(params.reserved));
  *products = asked == EARNEST_PRODUCTS_VENDOR ? engine::Products::kVendor : engine::Products::kOurs;
  return engine::check_products(*products, place);
}

// Loading in steps, between which somebody may give up.
class Loading {
 public:
  Loading(const char* folder, const earnest_model_params& params) : folder_(folder), params_(params) {}

  Outcome run(std::shared_ptr<const engine::LoadedModel>* loaded) {
    std::error_code error;
    if (!std::filesystem::is_directory(folder_, error)) {
      const bool there = std::filesystem::exists(folder_, error);
      return failure(there ? EARNEST_INVALID_ARGUMENT : EARNEST_NOT_FOUND, kOp, "folder", "a folder",
                     folder_.empty() ? "\"\"" : folder_);
    }
    EARNEST_RETURN_IF_FAILED(read_device(params_.device, &place_));
    EARNEST_RETURN_IF_FAILED(read_products(params_, place_, &products_));
    EARNEST_RETURN_IF_FAILED(report(0.0));
    engine::Config config;
    EARNEST_RETURN_IF_FAILED(read_config(&config));
    EARNEST_RETURN_IF_FAILED(find_tokenizer());  // before the seconds that weights can take
    // The words are read beside the weights, on a thread of their own where there is one to be had.
    std::shared_ptr<const engine::Tokenizer> tokenizer;
    auto words =
        std::async(std::launch::async | std::launch::deferred, [&] { return read_tokenizer(&tokenizer); });
    std::shared_ptr<engine::Model> model;
    engine::Digest fingerprint;
    const Outcome weights = read_weights(config, &model, &fingerprint);
    EARNEST_RETURN_IF_FAILED(words.get());
    EARNEST_RETURN_IF_FAILED(weights);
    EARNEST_RETURN_IF_FAILED(
        Outcome(engine::LoadedModel::create(std::move(model), std::move(tokenizer), fingerprint, loaded))
            .instead_of(EARNEST_INVALID_ARGUMENT, EARNEST_UNSUPPORTED_MODEL));
    return report(1.0);
  }

 private:
  Outcome report(double fraction) const {
    if (!params_.progress || params_.progress(fraction, params_.progress_user_data) == 0) return {};
    return failure(EARNEST_CANCELLED, kOp, "progress", "0 to go on", "another number");
  }

  // What is no JSON is broken; what is another model's is not supported.
  Outcome read_config(engine::Config* config) const {
    constexpr uint64_t kMostBytes = uint64_t{16} << 20;
    const auto path = (std::filesystem::path(folder_) / "config.json").string();
    std::shared_ptr<const engine::MappedFile> file;
    EARNEST_RETURN_IF_FAILED(engine::MappedFile::open(path, kMostBytes, &file));
    engine::json::Document document;
    EARNEST_RETURN_IF_FAILED(
        Outcome(engine::json::Document::parse(std::string(file->text()), path, &document))
            .instead_of(EARNEST_INVALID_ARGUMENT, EARNEST_CORRUPT_MODEL));
    return Outcome(engine::Config::parse(document.root(), config))
        .instead_of(EARNEST_INVALID_ARGUMENT, EARNEST_UNSUPPORTED_MODEL);
  }

  Outcome read_weights(const engine::Config& config, std::shared_ptr<engine::Model>* model,
                       engine::Digest* fingerprint) const {
    engine::Tensors tensors;
    EARNEST_RETURN_IF_FAILED(engine::read_checkpoint(folder_, &tensors));
    Arithmetic chosen;
    EARNEST_RETURN_IF_FAILED(
        choose_arithmetic(number_of(params_.weights), config.quantization, tensors, &chosen));
    EARNEST_RETURN_IF_FAILED(report(0.1));
    *fingerprint = engine::fingerprint_of(config, chosen.precision, chosen.quantization, tensors);
    EARNEST_RETURN_IF_FAILED(report(0.2));
    return Outcome(engine::Model::create(config, std::move(tensors), chosen.precision, model,
                                         chosen.quantization, place_, products_))
        .instead_of(EARNEST_INVALID_ARGUMENT, EARNEST_CORRUPT_MODEL);
  }

  std::filesystem::path tokenizer_path() const { return std::filesystem::path(folder_) / "tokenizer.json"; }

  Outcome find_tokenizer() const {
    std::error_code error;
    if (std::filesystem::is_regular_file(tokenizer_path(), error)) return {};
    return failure(EARNEST_NOT_FOUND, kOp, "folder", "a tokenizer.json in it", "none");
  }

  Outcome read_tokenizer(std::shared_ptr<const engine::Tokenizer>* tokenizer) const {
    auto read = std::make_shared<engine::Tokenizer>();
    EARNEST_RETURN_IF_FAILED(Outcome(engine::Tokenizer::load(tokenizer_path().string(), read.get()))
                                 .instead_of(EARNEST_INVALID_ARGUMENT, EARNEST_CORRUPT_MODEL)
                                 .instead_of(EARNEST_UNSUPPORTED, EARNEST_UNSUPPORTED_MODEL));
    *tokenizer = std::move(read);
    return {};
  }

  const std::string folder_;
  const earnest_model_params& params_;
  engine::Place place_;
  engine::Products products_ = engine::Products::kOurs;
};

std::string last_part(const char* folder) {
  auto path = std::filesystem::path(folder).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  return path.filename().string();
}

}  // namespace
}  // namespace earnest::capi

using namespace earnest::capi;

void earnest_model_params_default(earnest_model_params* params, size_t struct_size) {
  write_defaults(earnest_model_params{}, params, struct_size);
}

earnest_status earnest_model_load(const char* folder, const earnest_model_params* params,
                                  earnest_model** model) {
  return call(kOp, [&]() -> Outcome {
    EARNEST_RETURN_IF_FAILED(required(kOp, "model", model));
    *model = nullptr;
    EARNEST_RETURN_IF_FAILED(required(kOp, "folder", folder));
    earnest_model_params chosen{};
    EARNEST_RETURN_IF_FAILED(read_params(kOp, params, &chosen));
    const auto began = std::chrono::steady_clock::now();
    auto handle = std::make_unique<earnest_model>();
    EARNEST_RETURN_IF_FAILED(Loading(folder, chosen).run(&handle->loaded));
    handle->name = last_part(folder);
    if (logging()) {
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
      log(EARNEST_LOG_INFO,
          "model loaded in " + std::to_string(seconds.count()) + " s: " + handle->loaded->info());
    }
    *model = handle.release();
    return {};
  });
}

void earnest_model_retain(earnest_model* model) {
  if (model) model->references.fetch_add(1, std::memory_order_relaxed);
}

void earnest_model_destroy(earnest_model* model) {
  if (model && model->references.fetch_sub(1, std::memory_order_acq_rel) == 1) delete model;
}

const char* earnest_model_info(const earnest_model* model) {
  return model ? model->loaded->info().c_str() : nullptr;
}
