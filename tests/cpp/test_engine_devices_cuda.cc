// SPDX-License-Identifier: Apache-2.0
// The engine on a GPU that is not the first: everything it does happens there, from whichever thread, and the
// GPU that was current for a caller is current afterwards. The emulator has as many as it is told, and
// refuses work on streams and memory of another than the current one; a machine with one GPU can only say so.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "csrc/engine/place.h"
#include "tests/cpp/check.h"
#include "tests/cpp/on_device.h"
#include "tests/cpp/tiny_model.h"
#if defined(EARNEST_WITH_EMULATOR)
#include "kernels/common/cuda_emulated.h"
#endif

using namespace tiny;
using earnest::BFloat16;
using earnest::Device;
namespace cuda = earnest::cuda;

TEST(places_have_names_and_come_back_from_them) {
  for (const auto& [name, place] :
       {std::pair{"cpu", Place()}, std::pair{"cuda", Place(Device::kCuda)},
        std::pair{"cuda:1", Place(Device::kCuda, 1)}, std::pair{"cuda:12", Place(Device::kCuda, 12)}}) {
    Place read(Device::kCuda, 7);
    CHECK(read_place(name, &read).ok() && read == place && name_of(place) == name);
  }
  Place first;
  CHECK(read_place("cuda:0", &first).ok() && first == Place(Device::kCuda));
  for (const char* name : {"", "tpu", "cuda:", "cuda:-1", "cuda:x", "cuda:1 ", "cuda:99999999999", "cpu:0"}) {
    const Status status = read_place(name, &first);
    CHECK(status.code() == StatusCode::kInvalidArgument);
    CHECK(status.message() == std::string("[engine] device: expected cpu, cuda or cuda:N, got ") + name);
  }
}

#if defined(EARNEST_WITH_CUDA)
namespace {

Config small_config() {
  Config sizes = config(128);
  sizes.text.hidden_size = sizes.audio.llm_dim = 128;
  sizes.text.num_attention_heads = 2;
  sizes.text.num_key_value_heads = sizes.text.num_hidden_layers = 1;
  sizes.audio.n_audio_state = 64;
  sizes.audio.n_audio_head = 1;
  return sizes;
}

int devices_here() {
  require_device();
  int count = 0;
  CHECK(cuda::device_count("test", &count).ok());
  return count;
}

}  // namespace

TEST(a_gpu_that_is_not_there_is_an_error_with_how_many_there_are) {
  const int count = devices_here();
  std::shared_ptr<Model> model;
  const Status status = Model::create(small_config(), {}, Precision::kBFloat16, &model, Quantization::kNone,
                                      {Device::kCuda, count});
  CHECK(status.code() == StatusCode::kUnsupported && model == nullptr);
  const std::string there = count == 1 ? "cuda:0 (there is 1 GPU)"
                                       : "cuda:0 to cuda:" + std::to_string(count - 1) + " (there are " +
                                             std::to_string(count) + " GPUs)";
  CHECK(status.message() == "[engine] device: expected " + there + ", got cuda:" + std::to_string(count));
}

#if defined(EARNEST_WITH_EMULATOR)
namespace {

constexpr int kMeant = 1, kOther = 2;

// Three of them, of which the calling thread's is another than the model's until this ends.
class Machine {
 public:
  Machine() {
    require_device();
    cuda::emulated::set_devices(3);
    CHECK(cuda::set_device("test", kOther).ok());
    for (const int device : {0, kOther}) before_.push_back(cuda::emulated::given(device));
  }
  ~Machine() {
    CHECK(cuda::set_device("test", 0).ok());
    cuda::emulated::set_devices(1);
  }

  // What the engine did went to one device alone, and the calling thread is where it was.
  bool untouched() const {
    size_t i = 0;
    bool same = current() == kOther;
    for (const int device : {0, kOther}) {
      const auto now = cuda::emulated::given(device), before = before_[i++];
      same = same && now.work == before.work && now.bytes == before.bytes;
    }
    return same;
  }
  static int current() {
    int device = -1;
    CHECK(cuda::current_device("test", &device).ok());
    return device;
  }

 private:
  std::vector<cuda::emulated::Given> before_;
};

std::shared_ptr<const LoadedModel> on(const Place& place, Quantization codes = Quantization::kNone) {
  return model_of(small_config(), 3, Precision::kBFloat16, place, true, codes);
}

// What an engine says in a turn with sound, and in the next of a fork that was saved and loaded.
std::vector<Said> talk(const std::shared_ptr<const LoadedModel>& loaded, EngineStats* stats) {
  EngineOptions how;
  how.kv_bytes = kv_bytes(*loaded, 400);
  const auto own = engine(loaded, how);
  const auto one = session(own);
  add_sound(one.get(), sound(0.1, 5));
  CHECK(one->add_text("user", "how are you?").ok());
  std::vector<Said> said = {say(one.get(), endless(*loaded, 1, 6))};
  std::unique_ptr<Session> fork, read;
  CHECK(one->fork(&fork).ok());
  char path[] = "/tmp/earnest_device_session_XXXXXX";
  CHECK(close(mkstemp(path)) == 0);
  CHECK(fork->save(path).ok() && Session::load(own, path, &read).ok());
  std::remove(path);
  for (Session* session : {fork.get(), read.get()}) {
    CHECK(session->add_text("user", "and you?").ok());
    said.push_back(say(session, endless(*loaded, 2, 4)));
  }
  *stats = own->stats();
  return said;
}

}  // namespace

TEST(an_engine_works_on_its_own_gpu_and_leaves_the_callers_alone) {
  EngineStats stats;
  const auto wanted = talk(on(Device::kCuda), &stats);
  CHECK(wanted[0].status.ok() && wanted[1].status.ok() && wanted[1] == wanted[2]);
  const Machine machine;
  const auto taken = cuda::emulated::given(kMeant).bytes;
  {
    const auto loaded = on({Device::kCuda, kMeant});
    CHECK(machine.untouched() && cuda::emulated::given(kMeant).bytes > taken);
    CHECK(loaded->info().find("\"device\":\"cuda:1\"") != std::string::npos);
    CHECK(talk(loaded, &stats) == wanted && machine.untouched());
    CHECK(stats.graph_steps > 4 && stats.graph_trouble.ok());
    std::thread([&] { CHECK(talk(loaded, &stats) == wanted && Machine::current() == 0); }).join();
    CHECK(machine.untouched());
  }
  CHECK(cuda::emulated::given(kMeant).bytes == taken);
}

TEST(passes_and_caches_from_any_thread_go_to_the_models_gpu) {
  const Machine machine;
  const auto loaded = on({Device::kCuda, kMeant}, Quantization::kInt8);
  const Model& model = loaded->model();
  const auto& text = model.config().text;
  Arena arena;  // that passes on two GPUs share
  std::shared_ptr<KVPool> pool;
  CHECK(KVPool::create(text, Precision::kBFloat16, 40, &pool, model.place()).ok());
  KVCache cache, copied;
  CHECK(pool->allocate(10, &copied).ok() && pool->allocate(10, &cache).ok());
  const std::vector<int64_t> ids = {5, 6, 7};
  Segment segment;
  segment.cache = &cache, segment.count = 3, segment.ids = ids.data();
  std::vector<char> hidden(static_cast<size_t>(text.hidden_size) * 2);
  std::vector<float> logits(static_cast<size_t>(text.vocab_size)), logp(1), entropy(1);
  CHECK(model.forward({segment}, hidden.data(), &arena).ok() && machine.untouched());
  CHECK(model.logits(hidden.data(), 1, logits.data(), &arena).ok() && machine.untouched());
  CHECK(model.logprob(hidden.data(), 1, ids.data(), 1, logp.data(), entropy.data(), &arena).ok());
  CHECK(machine.untouched());
  CHECK(copied.copy(cache, 3).ok() && pool->grow(20, &copied).ok() && machine.untouched());
  cache.clear();
  CHECK(pool->grow(30, &copied).ok() && copied.length() == 3 && machine.untouched());
  size_t bytes = 0;
  CHECK(pool->read(copied.start(), 3, [&](char*, size_t count) { bytes += count; }).ok() && bytes > 0);
  CHECK(machine.untouched());

  CHECK(engine(loaded)->stats().kv_tokens == 4 * 128 && machine.untouched());  // asks what is free there

  // The same arena on another GPU, and a cache that lies on this one.
  const auto other = on({Device::kCuda, 0});
  Segment wrong = segment;
  wrong.cache = &copied;
  CHECK(other->model().forward({wrong}, hidden.data(), &arena).message() ==
        "[decoder] cache: expected one on cuda, got one on cuda:1");
  CHECK(other->model().logprob(hidden.data(), 1, ids.data(), 1, logp.data(), entropy.data(), &arena).ok());
  CHECK(model.logprob(hidden.data(), 1, ids.data(), 1, logp.data(), entropy.data(), &arena).ok());
  std::shared_ptr<KVPool> elsewhere;
  CHECK(KVPool::create(text, Precision::kBFloat16, 8, &elsewhere, Device::kCuda).ok());
  CHECK(elsewhere->allocate(8, &cache).ok());
  CHECK(cache.copy(copied, 2).message() ==
        "[kv_cache] other: expected a cache on the same device, got one on another");
}

// More of it than a first block holds, so that the second pass makes one block of two.
TEST(scratch_memory_that_grows_lies_on_the_models_gpu) {
  Config sizes = small_config();
  sizes.text.vocab_size = 8200;
  const Machine machine;
  std::shared_ptr<Model> model;
  CHECK(Model::create(sizes, tensors_of(sizes, 3, true), Precision::kBFloat16, &model, Quantization::kNone,
                      {Device::kCuda, kMeant})
            .ok());
  constexpr int64_t kRows = 64;
  const std::vector<char> hidden(static_cast<size_t>(kRows * sizes.text.hidden_size) * 2);
  std::vector<float> logits(static_cast<size_t>(kRows * sizes.text.vocab_size));
  Arena arena;
  for (int pass = 0; pass < 2; ++pass) {
    arena.reset();
    CHECK(model->logits(hidden.data(), kRows, logits.data(), &arena).ok());
    CHECK(machine.untouched());
  }
}

TEST(the_emulator_refuses_what_belongs_to_another_device) {
  const Machine machine;
  void *memory = nullptr, *stream = nullptr, *graph = nullptr;
  CHECK(cuda::set_device("test", 0).ok() && cuda::allocate("test", 8, &memory).ok());
  CHECK(cuda::create_stream("test", &stream).ok() && cuda::begin_capture("test", stream).ok());
  CHECK(cuda::fill("test", memory, 0, 8, stream).ok() && cuda::end_capture("test", stream, &graph).ok());
  CHECK(cuda::set_device("test", kMeant).ok());
  const std::string wrong = ": expected one of device 1, which is current, got one of device 0";
  char byte = 0;
  CHECK(cuda::copy("test", &byte, memory, 1, nullptr).message() == "[test] memory" + wrong);
  CHECK(cuda::fill("test", static_cast<char*>(memory) + 7, 0, 1, nullptr).message() ==
        "[test] memory" + wrong);
  CHECK(cuda::launch_graph("test", graph, nullptr).message() == "[test] graph" + wrong);
  CHECK(cuda::set_device("test", 3).message() ==
        "[test] device: expected success, got invalid device ordinal");
  CHECK(Machine::current() == kMeant);
  cuda::destroy_graph(graph);
  cuda::destroy_stream(stream);
  cuda::release(memory);
}
#endif
#endif
