// SPDX-License-Identifier: Apache-2.0
// Whose products an engine on a GPU takes: kernels/linear's own, or those of the vendor's library, in whose
// place in the emulator stands fake_cublaslt.cc, which counts them. On a GPU its own, where there is one.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "csrc/engine/key_pieces.h"
#include "tests/cpp/check.h"
#include "tests/cpp/decoding_world.h"
#include "tests/cpp/on_device.h"
#include "tests/cpp/tiny_model.h"
#if defined(EARNEST_FAKE_CUBLASLT)
#include <dlfcn.h>

#include "kernels/common/cuda_emulated.h"
#include "tests/cpp/fake_cublaslt.h"
#endif

using namespace tiny;
using earnest::BFloat16;
using earnest::Device;

namespace {

Config small_config() { return narrow_config_for_gpu(600); }

Status make(const Config& sizes, const Place& place, Products products, std::shared_ptr<Model>* model) {
  return Model::create(sizes, tensors_of(sizes, 3, true), Precision::kBFloat16, model, Quantization::kNone,
                       place, products);
}

}  // namespace

TEST(the_vendors_products_are_refused_on_the_cpu) {
  std::shared_ptr<Model> model;
  const Status status = make(small_config(), Device::kCpu, Products::kVendor, &model);
  CHECK(status.code() == StatusCode::kUnsupported && model == nullptr);
  CHECK(status.message() == "[engine] products: expected ours on cpu, got vendor");
  CHECK(make(small_config(), Device::kCpu, Products::kOurs, &model).ok() &&
        model->products() == Products::kOurs);
}

TEST(keys_go_in_pieces_but_with_the_vendors_products_where_prompts_are_read) {
  using Bounds = std::vector<int32_t>;
  const auto both = [](const Bounds& queries, const Bounds& used, bool with_vendors) {
    return takes_pieces(Products::kOurs, queries, used) &&
           takes_pieces(Products::kVendor, queries, used) == with_vendors;
  };
  CHECK(both({0, 1, 2}, {3, 700}, true));                 // a step of decoding
  CHECK(both({0, 0, 0, 1}, {0, 0, 3}, true));             // of a graph, filled up
  CHECK(both({0, 600}, {600}, false));                    // a prompt
  CHECK(both({0, 2}, {5000}, false));                     // a short one
  CHECK(both({0, 100, 101, 102}, {900, 512, 1}, false));  // beside dialogues of few keys
  CHECK(both({0, 100, 101, 102}, {900, 513, 1}, true));   // and of many
  CHECK(both({0, 1, 101}, {513, 900}, true));
  CHECK(both({0, 0, 100}, {900, 900}, false));  // whose rows nobody wants
}

#if defined(EARNEST_WITH_CUDA)
// Before the others: a library that was found stays.
TEST(the_vendors_products_are_refused_where_its_library_is_not) {
  require_device();
  std::shared_ptr<Model> model;
  setenv("EARNEST_CUBLASLT", "/of/no/such/name.so", 1);
  const Status status = make(small_config(), Device::kCuda, Products::kVendor, &model);
  unsetenv("EARNEST_CUBLASLT");
  CHECK(status.code() == StatusCode::kUnsupported && model == nullptr);
  CHECK(status.message().find("[engine] products: expected ours (vendor needs cuBLASLt: libcublasLt.so.13 or "
                              ".12, or as EARNEST_CUBLASLT names it), got vendor (/of/no/such/name.so") == 0);
}

namespace {

#if defined(EARNEST_FAKE_CUBLASLT)
FakeCublasLt& fake() {
  static FakeCublasLt& one = [&]() -> FakeCublasLt& {
    void* const library = dlopen(EARNEST_FAKE_CUBLASLT, RTLD_NOW | RTLD_LOCAL);
    CHECK(library != nullptr);
    auto* const found = reinterpret_cast<FindFakeCublasLt>(dlsym(library, kFakeCublasLt))();
    found->put = [](void* stream, std::function<void()> work) {
      return earnest::cuda::emulated::put("cublasLt", stream, std::move(work)).ok();
    };
    return *found;
  }();
  return one;
}
#endif

const std::shared_ptr<const LoadedModel>& loaded(Products products) {
  require_device();
#if defined(EARNEST_FAKE_CUBLASLT)
  setenv("EARNEST_CUBLASLT", EARNEST_FAKE_CUBLASLT, 1);
  fake();
#endif
  static const auto own = model_of(small_config(), 3, Precision::kBFloat16, Device::kCuda, true);
  if (products == Products::kOurs) return own;
  static const auto vendors = model_of(small_config(), 3, Precision::kBFloat16, Device::kCuda, true,
                                       Quantization::kNone, Products::kVendor);
  return vendors;
}

// Whether the machine has a library.
bool has_vendor() {
  loaded(Products::kOurs);
  const Status status = check_products(Products::kVendor, Device::kCuda);
  if (!status.ok()) std::printf("     left out: %s\n", status.message().c_str());
  return status.ok();
}

std::vector<float> wide(const std::vector<char>& stored) {
  std::vector<float> numbers(stored.size() / sizeof(BFloat16));
  for (size_t i = 0; i < numbers.size(); ++i) {
    BFloat16 number;
    std::memcpy(&number, stored.data() + i * sizeof number, sizeof number);
    numbers[i] = earnest::widen(number);
  }
  return numbers;
}

double root_mean_square(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

// Of one row of a step: hidden state, then logits.
std::vector<char> row_of(const std::vector<char>& step, size_t row, size_t rows) {
  const auto hidden = static_cast<size_t>(small_config().text.hidden_size) * sizeof(BFloat16);
  const auto logits = static_cast<size_t>(small_config().text.vocab_size) * sizeof(float);
  CHECK(step.size() == rows * (hidden + logits));
  std::vector<char> found(hidden + logits);
  std::memcpy(found.data(), step.data() + row * hidden, hidden);
  std::memcpy(found.data() + hidden, step.data() + rows * hidden + row * logits, logits);
  return found;
}

std::vector<char> heard(const Model& model) {
  constexpr int64_t kFrames = 21;
  std::mt19937 random(8);
  std::normal_distribution<float> normal(0.0F, 1.0F);
  std::vector<float> mel(static_cast<size_t>(kFrames * model.config().audio.n_mels));
  for (float& number : mel) number = normal(random);
  std::vector<char> embeddings(
      static_cast<size_t>(model.config().audio.audio_tokens(kFrames) * model.config().text.hidden_size) *
      sizeof(BFloat16));
  Arena arena;
  CHECK(model.hear(Sound::of_features(mel.data(), kFrames), embeddings.data(), &arena).ok());
  return embeddings;
}

std::vector<char> read(const Model& model, int64_t count, int64_t wanted) {
  std::shared_ptr<KVPool> pool;
  CHECK(KVPool::create(model.config().text, Precision::kBFloat16, count, &pool, Device::kCuda).ok());
  KVCache cache;
  CHECK(pool->allocate(count, &cache).ok());
  const auto ids = some_ids(count, 4);
  Segment segment = segment_of(&cache, ids);
  segment.wanted = wanted;
  std::vector<char> hidden(static_cast<size_t>(wanted * model.config().text.hidden_size) * sizeof(BFloat16));
  Arena arena;
  CHECK(model.forward({segment}, hidden.data(), &arena).ok());
  return hidden;
}

Said ask(Products products, EngineStats* stats) {
  const auto own = engine(loaded(products));
  const auto one = session(own);
  CHECK(one->add_text("user", "how are you?").ok());
  AnswerOptions how = endless(*loaded(products), 1, 8);
  how.sampling.temperature = 0;
  const Said said = say(one.get(), how);
  *stats = own->stats();
  return said;
}

}  // namespace

TEST(what_the_vendors_products_give_is_near_to_what_ours_give) {
  if (!has_vendor()) return;
  const Model &ours = loaded(Products::kOurs)->model(), &vendors = loaded(Products::kVendor)->model();
  CHECK(vendors.products() == Products::kVendor && ours.products() == Products::kOurs);
  CHECK(loaded(Products::kVendor)->info().find("\"products\":\"vendor\"") != std::string::npos);
  CHECK(loaded(Products::kOurs)->info().find("\"products\":\"ours\"") != std::string::npos);
  const double reading = root_mean_square(wide(read(ours, 17, 17)), wide(read(vendors, 17, 17)));
  const double hearing = root_mean_square(wide(heard(ours)), wide(heard(vendors)));
  std::printf("     hidden states off by %.5f, sounds by %.5f\n", reading, hearing);
  CHECK(reading <= 0.01 && hearing <= 0.01);
  EngineStats stats;
  const Said wanted = ask(Products::kOurs, &stats), found = ask(Products::kVendor, &stats);
  CHECK(found.status.ok() && found.ids.size() == 8 && stats.graph_trouble.ok() && stats.graph_steps == 6);
  const auto [differs, other] =
      std::mismatch(wanted.ids.begin(), wanted.ids.end(), found.ids.begin(), found.ids.end());
  const auto same = differs - wanted.ids.begin();
  CHECK(same >= 1);
  for (std::ptrdiff_t i = 0; i < same; ++i)
    CHECK_NEAR(wanted.logp[static_cast<size_t>(i)], found.logp[static_cast<size_t>(i)], 0.05);
}

TEST(with_ours_a_row_has_the_hidden_state_and_the_logits_that_it_has_alone) {
  const Model& model = loaded(Products::kOurs)->model();
  for (const bool graphs : {true, false}) {
    World alone(model, graphs, 200), beside(model, graphs, 200);
    for (World* world : {&alone, &beside}) world->join(some_ids(5, 1), 20);
    beside.join(some_ids(9, 2), 20), beside.join(some_ids(2, 3), 20);
    for (int64_t step = 0; step < 3; ++step) {  // plain, recorded, replayed
      const auto one = alone.step({7 + step}, graphs), three = beside.step({7 + step, 30, 31 + step}, graphs);
      CHECK(row_of(three, 0, 3) == one);
    }
  }
}

#if defined(EARNEST_FAKE_CUBLASLT)
namespace {

// Products of the vendor that a call makes.
template <typename Call>
int64_t taken(const Call& call) {
  const int64_t before = fake().done;
  call();
  return fake().done - before;
}

constexpr int64_t kOfDecoder = 2 * (3 + 1 + 2 + 1);            // q, k, v; o; gate, up; down
constexpr int64_t kOfHearing = 2 + (3 + 1 + 1 + 1) + (1 + 2);  // encoder's convolutions; its layer; adaptor
constexpr int64_t kOfHead = 1;

}  // namespace

TEST(every_product_is_the_vendors_but_those_of_codes) {
  const Model &ours = loaded(Products::kOurs)->model(), &vendors = loaded(Products::kVendor)->model();
  const auto coded = model_of(small_config(), 3, Precision::kBFloat16, Device::kCuda, true,
                              Quantization::kInt8, Products::kVendor);
  for (const auto& [model, of_decoder, of_hearing, of_head] :
       {std::tuple(&ours, int64_t{0}, int64_t{0}, int64_t{0}),
        std::tuple(&vendors, kOfDecoder, kOfHearing, kOfHead),
        std::tuple(&coded->model(), int64_t{0}, kOfHearing, int64_t{0})}) {
    CHECK(taken([&, one = model] { read(*one, 3, 3); }) == of_decoder);
    CHECK(taken([&, one = model] { heard(*one); }) == of_hearing);
    const std::vector<BFloat16> hidden(static_cast<size_t>(model->config().text.hidden_size));
    std::vector<float> logits(static_cast<size_t>(model->config().text.vocab_size));
    Arena arena;
    CHECK(taken([&, one = model] { CHECK(one->logits(hidden.data(), 1, logits.data(), &arena).ok()); }) ==
          of_head);
  }
}

// A prompt in pieces is joined by a kernel more in each layer, as soon as it has two of them.
TEST(with_the_vendors_products_a_prompt_has_one_softmax_over_all_its_keys) {
  std::vector<float> found[2];
  for (const Products products : {Products::kOurs, Products::kVendor}) {
    const Model& model = loaded(products)->model();
    const auto work = [&](int64_t count, int64_t wanted) {
      const int64_t before = earnest::cuda::emulated::given(0).work;
      read(model, count, wanted);
      return earnest::cuda::emulated::given(0).work - before;
    };
    const int64_t layers = model.config().text.num_hidden_layers, pieces = products == Products::kOurs;
    CHECK(work(513, 1) - work(512, 1) == pieces * (layers - 1) + 1);  // the last layer asks for one row
    CHECK(work(513, 513) - work(512, 512) == pieces * layers);
    found[static_cast<int>(products)] = wide(read(model, 513, 1));
  }
  CHECK(root_mean_square(found[0], found[1]) <= 0.01);
}

// A product that was done while a graph was recorded, and not in it, is missed when the graph is replayed.
TEST(graphs_hold_the_vendors_products_and_look_for_no_algorithm_while_they_are_recorded) {
  const Model& model = loaded(Products::kVendor)->model();
  World recorded(model, true, 200), plain(model, false, 200);
  const auto join = [&](int64_t count, uint32_t seed) {
    for (World* world : {&recorded, &plain}) world->join(some_ids(count, seed), 20);
  };
  join(5, 1);
  for (int64_t step = 0; step < 8; ++step) {
    if (step == 4) join(3, 2), join(4, 3);
    const auto ids = some_ids(static_cast<int64_t>(plain.size()), static_cast<uint32_t>(step));
    const auto before = recorded.graphs().counts();
    const int64_t searches = fake().searches;
    std::vector<char> found;
    CHECK(taken([&] { found = recorded.step(ids, true); }) == kOfDecoder + kOfHead);
    if (recorded.graphs().counts().replayed > before.replayed) CHECK(fake().searches == searches);
    CHECK(found == plain.step(ids, false));
  }
  const auto counts = recorded.graphs().counts();
  CHECK(counts.recorded == 2 && counts.replayed == 6 && recorded.graphs().trouble().ok());
}

// Whose memory lies in pieces the first time, so that arrays begin on other boundaries than they will.
TEST(a_step_has_the_algorithms_that_it_had_when_its_memory_lay_elsewhere) {
  Config sizes = small_config();
  sizes.text.vocab_size = 8200;  // logits of 64 rows are more than the first piece of an arena
  std::shared_ptr<Model> model;
  CHECK(make(sizes, Device::kCuda, Products::kVendor, &model).ok());
  World world(*model, true, 400);
  world.join(some_ids(3, 1), 10);
  for (int i = 0; i < 32; ++i) world.fork(0, 10);
  const auto ids = some_ids(33, 2);
  world.step(ids, true);
  const int64_t searches = fake().searches;
  world.step(ids, true);
  CHECK(world.graphs().counts().recorded == 1 && fake().searches == searches);
}

// A library whose numbers do depend on the batch; the test of ours, above, would see it.
TEST(with_the_vendors_what_a_row_says_may_depend_on_what_is_beside_it) {
  for (const Products products : {Products::kOurs, Products::kVendor}) {
    const Model& model = loaded(products)->model();
    World alone(model, false, 200), beside(model, false, 200);
    for (World* world : {&alone, &beside}) world->join(some_ids(5, 1), 20);
    beside.join(some_ids(9, 2), 20);
    fake().depends_on_batch = true;
    const auto one = alone.step({7}, false), two = beside.step({7, 30}, false);
    fake().depends_on_batch = false;
    CHECK((row_of(two, 0, 2) == one) == (products == Products::kOurs));
  }
}

TEST(a_product_that_fails_ends_an_answer_with_the_reason_and_the_session_goes_on) {
  const auto own = engine(loaded(Products::kVendor));
  const auto one = session(own);
  CHECK(one->add_text("user", "how are you?").ok());
  fake().fails = true;
  const Said failed = say(one.get(), endless(*loaded(Products::kVendor), 1, 3));
  fake().fails = false;
  CHECK(failed.finish == Finish::kError && failed.status.code() == StatusCode::kInternal);
  CHECK(failed.status.message() == "[linear] cuBLASLt: expected cublasLtMatmul to succeed, got status 13");
  CHECK(say(one.get(), endless(*loaded(Products::kVendor), 1, 3)).status.ok());
}
#endif
#endif
