// SPDX-License-Identifier: Apache-2.0
// Sessions in files: loaded, they go on as if they had never stopped; damaged or foreign, they are refused.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "csrc/engine/digest.h"
#include "tests/cpp/check.h"
#include "tests/cpp/session_bytes.h"
#include "tests/cpp/tiny_model.h"

using namespace tiny;

namespace {

// A folder of its own for each run.
class Folder {
 public:
  Folder() {
    char name[] = "/tmp/earnest_sessions_XXXXXX";
    path_ = mkdtemp(name);
  }
  ~Folder() {
    std::remove(file().c_str());
    std::remove(path_.c_str());  // fails where something else was left there
    CHECK(!std::ifstream(path_).good());
  }
  std::string file() const { return path_ + "/session"; }

 private:
  std::string path_;
};

const std::shared_ptr<const LoadedModel>& shared_model() {
  static const auto loaded = model();
  return loaded;
}

void tell(Session* one, uint32_t seed) {
  CHECK(one->add_text("system", "be kind to the other").ok());
  add_sound(one, sound(2, seed));
  CHECK(say(one, options(seed)).started.ok());
  CHECK(one->add_text("user", "half a message").ok());
  add_sound(one, sound(1, seed + 1));
}

Said go_on(Session* one) {
  CHECK(one->add_text("user", "and the rest of it").ok());
  const Said said = say(one, options(77, 20));
  CHECK(one->add_text("user", "once more").ok());
  CHECK(say(one, options(78, 20)).started.ok());
  return said;
}

}  // namespace

TEST(a_loaded_session_goes_on_as_one_that_never_stopped) {
  const Folder folder;
  for (uint32_t seed = 0; seed < 6; ++seed) {
    const auto own = engine(shared_model()), other = engine(shared_model());
    const auto never = session(own);
    tell(never.get(), seed);
    if (seed % 2 == 0) {
      CHECK(never->warm().ok());
      rest(*own);
    }
    CHECK(never->save(folder.file()).ok());
    std::unique_ptr<Session> loaded;
    CHECK(Session::load(other, folder.file(), &loaded).ok());
    CHECK(loaded->ids() == never->ids() && loaded->message_count() == never->message_count());
    const int64_t encoded = other->stats().encoded_chunks;
    const Said expected = go_on(never.get()), said = go_on(loaded.get());
    CHECK(said == expected && loaded->ids() == never->ids());
    if (seed % 2 == 1) continue;  // what had been read ahead when it was saved is up to chance
    CHECK(said.usage.cached_tokens == expected.usage.cached_tokens && said.usage.cached_tokens > 40);
    CHECK(other->stats().encoded_chunks == encoded);
  }
}

TEST(a_session_is_loaded_into_a_pool_without_room_and_computed_again) {
  const Folder folder;
  const auto own = engine(shared_model());
  const auto never = session(own);
  tell(never.get(), 5);
  CHECK(never->save(folder.file()).ok());
  EngineOptions how;
  how.kv_bytes = kv_bytes(*shared_model(), 200);
  const auto tight = engine(shared_model(), how);
  std::unique_ptr<Session> loaded[4];
  for (auto& one : loaded) CHECK(Session::load(tight, folder.file(), &one).ok());
  const Said expected = go_on(never.get());
  for (auto& one : loaded) CHECK(go_on(one.get()) == expected);
}

TEST(files_that_were_damaged_are_refused_by_name) {
  const Folder folder;
  const auto own = engine(shared_model());
  const auto one = session(own);
  tell(one.get(), 1);
  CHECK(one->save(folder.file()).ok());
  const std::string good = content(folder.file());
  std::unique_ptr<Session> loaded;
  std::mt19937 random(2);
  const auto refused = [&](const std::string& data) {
    write(folder.file(), data);
    const Status status = Session::load(own, folder.file(), &loaded);
    const bool named = status.message().find(folder.file()) != std::string::npos ||
                       status.message().find("one of this model") != std::string::npos;
    return !status.ok() && named && loaded == nullptr;
  };
  for (int i = 0; i < 300; ++i) {
    std::string bad = good;
    bad[random() % (i < 150 ? 400 : bad.size())] ^= static_cast<char>(1 << random() % 8);
    CHECK(refused(bad));
    CHECK(refused(good.substr(0, random() % good.size())));
    CHECK(refused(good + "x"));
  }
  CHECK(Session::load(own, folder.file() + "/nothing", &loaded).code() == StatusCode::kNotFound);
  CHECK(Session::load(own, "/tmp", &loaded).code() == StatusCode::kInvalidArgument);
  CHECK(one->save("/nowhere/at/all").code() == StatusCode::kNotFound);
  write(folder.file(), good);
  CHECK(Session::load(own, folder.file(), &loaded).ok());
  CHECK(own->stats().sessions == 2);
}

// With the digest made to fit: nothing crashes, and whatever is loaded can be used.
TEST(files_that_lie_do_no_harm) {
  const Folder folder;
  const auto own = engine(shared_model());
  const auto one = session(own);
  tell(one.get(), 1);
  CHECK(one->warm().ok());
  rest(*own);
  CHECK(one->save(folder.file()).ok());
  const std::string good = content(folder.file());
  std::mt19937 random(3);
  int loaded_anyway = 0;
  for (int i = 0; i < 400; ++i) {
    std::string bad = good;
    const size_t at = random() % (i % 4 == 0 ? bad.size() - 40 : 1200);
    if (i % 3 == 0) {
      for (size_t j = at; j < std::min(at + 8, bad.size() - 33); ++j) bad[j] = static_cast<char>(random());
    } else {
      bad[at] = static_cast<char>(random());
    }
    write(folder.file(), signed_again(bad));
    std::unique_ptr<Session> loaded;
    if (!Session::load(own, folder.file(), &loaded).ok()) continue;
    ++loaded_anyway;
    (void)loaded->add_text("user", "well");
    (void)say(loaded.get(), options(1, 2));
  }
  CHECK(loaded_anyway > 10);
  // What a file says was computed stays with its session: others that begin alike say what they would.
  std::string lie = good;
  for (size_t i = lie.size() - 4000; i < lie.size() - 40; i += 4) lie[i + 1] = static_cast<char>(random());
  write(folder.file(), signed_again(lie));
  std::unique_ptr<Session> liar;
  const auto fresh = engine(shared_model());
  CHECK(Session::load(fresh, folder.file(), &liar).ok());
  const auto honest = session(fresh), alone = session(engine(shared_model()));
  for (Session* session : {honest.get(), alone.get()}) tell(session, 1);
  liar.reset();
  CHECK(go_on(honest.get()) == go_on(alone.get()));
}

TEST(files_of_the_version_before_are_read_and_others_refused_by_number) {
  const Folder folder;
  const auto own = engine(shared_model());
  const auto one = session(own);
  tell(one.get(), 1);
  CHECK(one->save(folder.file()).ok());
  std::string file = content(folder.file());
  for (const char version : {1, 2, 0, 3}) {
    file[8] = version;
    write(folder.file(), signed_again(file));
    std::unique_ptr<Session> loaded;
    const Status status = Session::load(own, folder.file(), &loaded);
    const bool known = version == 1 || version == 2;
    CHECK(status.ok() == known && (loaded != nullptr) == known);
    if (!known) CHECK(status.message().find("expected version 1 to 2, got ") != std::string::npos);
  }
}

TEST(files_of_other_weights_are_refused) {
  const Folder folder;
  const auto one = session(engine(shared_model()));
  tell(one.get(), 1);
  CHECK(one->save(folder.file()).ok());
  std::unique_ptr<Session> loaded;
  for (const auto& other : {model(4096, 2), model(4096, 1, Precision::kBFloat16)}) {
    CHECK(Session::load(engine(other), folder.file(), &loaded).code() == StatusCode::kInvalidArgument);
  }
  CHECK(Session::load(engine(model()), folder.file(), &loaded).ok());
}

TEST(digests_are_those_of_the_standard) {
  Sha256 empty, abc, million;
  CHECK(hexadecimal(empty.finish()) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  abc.add("abc", 3);
  CHECK(hexadecimal(abc.finish()) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const std::string a(1000, 'a');
  for (int i = 0; i < 1000; ++i) {
    million.add(a.data(), static_cast<size_t>(i) % 1000);
    million.add(a.data(), 1000 - static_cast<size_t>(i) % 1000);
  }
  CHECK(hexadecimal(million.finish()) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}
