// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/session_file.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "csrc/engine/checked_file.h"
#include "csrc/engine/guard.h"
#include "csrc/engine/utf8.h"

namespace earnest::engine {
namespace {

constexpr char kMagic[] = "EARNSESS";
// Version 1 knew no samples.
constexpr uint64_t kVersion = 2, kMostBytes = uint64_t{1} << 30, kMostItems = uint64_t{1} << 31;

using ChunkList = std::vector<std::shared_ptr<HeardChunk>>;

// How a sound stands in the file.
enum class Saved : uint64_t { kFeatures, kEmbeddings, kSamples };

// A sound as it was when writing began: embeddings stay, features and samples go when they have been heard.
struct SavedChunk {
  std::shared_ptr<const HeardChunk> chunk;
  PageVector<float> mel, pcm;

  Saved as() const {
    return !mel.empty() ? Saved::kFeatures : !pcm.empty() ? Saved::kSamples : Saved::kEmbeddings;
  }
};

class Writing {
 public:
  Writing(const std::string& path, EngineCore* core, const SessionState& session)
      : core_(*core), session_(session), file_(path) {}

  // computed: tokens whose keys and values stay where they are meanwhile.
  Status run(const std::vector<SavedChunk>& chunks, int64_t computed) {
    file_.bytes(kMagic, 8);
    file_.number(kVersion);
    file_.bytes(core_.model->fingerprint().data(), sizeof(Digest));
    file_.number(static_cast<uint64_t>(session_.options.template_name));
    file_.number(session_.options.strip_history ? 1 : 0);
    file_.text(session_.options.tools);
    write_chunks(chunks);
    write_tokens();
    write_open();
    file_.number(static_cast<uint64_t>(computed));
    const KVCache& cache = session_.prefix->cache;
    const auto write = [&](const char* memory, size_t bytes) { file_.bytes(memory, bytes); };
    EARNEST_RETURN_IF_ERROR(core_.prefixes.pool().read(cache.start(), computed, write));
    return file_.finish();
  }

  // All sounds of the session, each once.
  ChunkList collect() {
    ChunkList all;
    const auto add = [&](const std::shared_ptr<HeardChunk>& chunk) {
      if (numbers_.emplace(chunk.get(), all.size()).second) all.push_back(chunk);
    };
    for (const AudioPlace& place : session_.prefix->tokens.audio()) add(place.chunk);
    if (session_.open) {
      for (const auto& part : session_.open->parts) {
        if (const auto* chunks = std::get_if<Chunks>(&part))
          std::for_each(chunks->begin(), chunks->end(), add);
      }
    }
    return all;
  }

 private:
  void write_chunks(const std::vector<SavedChunk>& chunks) {
    file_.number(chunks.size());
    for (const SavedChunk& saved : chunks) {
      const HeardChunk& chunk = *saved.chunk;
      file_.bytes(chunk.digest.data(), sizeof(Digest));
      file_.number(static_cast<uint64_t>(chunk.frames));
      file_.number(static_cast<uint64_t>(saved.as()));
      if (saved.as() == Saved::kEmbeddings) file_.bytes(chunk.embeddings.data(), chunk.embeddings.size());
      if (saved.as() == Saved::kSamples) file_.number(saved.pcm.size());
      file_.bytes(saved.mel.data(), saved.mel.size() * sizeof(float));
      file_.bytes(saved.pcm.data(), saved.pcm.size() * sizeof(float));
    }
  }

  void write_tokens() {
    const Transcript& tokens = session_.prefix->tokens;
    file_.number(tokens.ids().size());
    for (const int32_t id : tokens.ids()) file_.number(static_cast<uint64_t>(id));
    file_.number(tokens.audio().size());
    for (const AudioPlace& place : tokens.audio()) {
      file_.number(static_cast<uint64_t>(place.start));
      file_.number(numbers_.at(place.chunk.get()));
    }
    file_.number(session_.ends.size());
    for (const int64_t end : session_.ends) file_.number(static_cast<uint64_t>(end));
  }

  void write_open() {
    file_.number(session_.open ? 1 : 0);
    if (!session_.open) return;
    file_.text(session_.open->role);
    file_.number(session_.open->parts.size());
    for (const auto& part : session_.open->parts) {
      file_.number(part.index());
      if (const auto* text = std::get_if<std::string>(&part)) {
        file_.text(*text);
        continue;
      }
      const auto& chunks = std::get<Chunks>(part);
      file_.number(chunks.size());
      for (const auto& chunk : chunks) file_.number(numbers_.at(chunk.get()));
    }
  }

  EngineCore& core_;
  const SessionState& session_;
  FileWriter file_;
  std::map<const HeardChunk*, size_t> numbers_;
};

class Reading {
 public:
  Reading(const std::string& path, EngineCore* core)
      : core_(*core), file_(path), session_(std::make_shared<SessionState>()) {}

  Status run(std::shared_ptr<SessionState>* session) {
    EARNEST_RETURN_IF_ERROR(read_header());
    read_chunks();
    read_tokens();
    read_open();
    EARNEST_RETURN_IF_ERROR(file_.status());
    EARNEST_RETURN_IF_ERROR(read_keys_and_values());
    *session = std::move(session_);
    return {};
  }

 private:
  Status read_header() {
    char magic[8];
    file_.bytes(magic, sizeof magic);
    if (std::memcmp(magic, kMagic, sizeof magic) != 0) file_.refuse("a session's file", "something else");
    version_ = file_.number();
    if (version_ < 1 || version_ > kVersion)
      file_.refuse("version 1 to " + std::to_string(kVersion), std::to_string(version_));
    Digest fingerprint;
    file_.bytes(fingerprint.data(), sizeof fingerprint);
    EARNEST_RETURN_IF_ERROR(file_.status());
    if (fingerprint != core_.model->fingerprint()) {
      return invalid_argument("load", "session",
                              "one of this model (" + hexadecimal(core_.model->fingerprint()) + ")",
                              "one of " + hexadecimal(fingerprint));
    }
    const uint64_t name = file_.number(), strip = file_.number();
    if (name > 1 || strip > 1) file_.refuse("options that there are", "others");
    session_->options.template_name = static_cast<TemplateName>(name);
    session_->options.strip_history = strip == 1;
    session_->options.tools = file_.text(kMostBytes);
    return file_.status();
  }

  void read_chunks() {
    const EncoderConfig& audio = core_.model->config().audio;
    const size_t row_bytes = static_cast<size_t>(core_.model->config().text.hidden_size) *
                             size_of(core_.model->model().precision());
    const uint64_t count = file_.count("sounds", sizeof(Digest) + 16, kMostItems);
    for (uint64_t i = 0; i < count && file_.ok(); ++i) {
      auto chunk = std::make_shared<HeardChunk>();
      file_.bytes(chunk->digest.data(), sizeof(Digest));
      const uint64_t frames = file_.number(), number = file_.number();
      const auto as = static_cast<Saved>(number);
      if (frames > static_cast<uint64_t>(2 * audio.n_audio_ctx) ||
          as > (version_ == 1 ? Saved::kEmbeddings : Saved::kSamples)) {
        file_.refuse("a sound that the encoder takes", std::to_string(frames) + " frames");
        return;
      }
      chunk->frames = static_cast<int64_t>(frames);
      chunk->rows = audio.audio_tokens(chunk->frames);
      chunk->heard = as == Saved::kEmbeddings || chunk->rows == 0;
      if (as == Saved::kEmbeddings) {
        chunk->embeddings.resize(static_cast<size_t>(chunk->rows) * row_bytes);
        file_.bytes(chunk->embeddings.data(), chunk->embeddings.size());
      } else if (as == Saved::kSamples) {
        read_samples(chunk.get());
      } else {
        chunk->mel.resize(frames * static_cast<uint64_t>(audio.n_mels));
        file_.bytes(chunk->mel.data(), chunk->mel.size() * sizeof(float));
      }
      chunks_.push_back(std::move(chunk));
    }
  }

  void read_samples(HeardChunk* chunk) {
    const uint64_t samples = file_.count("samples", sizeof(float), kMaxChunkSamples);
    if (samples == 0 || mel_frames(static_cast<int64_t>(samples)) != chunk->frames) {
      file_.refuse("the samples of " + std::to_string(chunk->frames) + " frames", std::to_string(samples));
      return;
    }
    chunk->pcm.resize(samples);
    file_.bytes(chunk->pcm.data(), samples * sizeof(float));
    const Status status = logmel::check_samples(chunk->pcm.data(), static_cast<int64_t>(samples));
    if (!status.ok()) file_.refuse("samples of sound", status.message());
  }

  std::shared_ptr<HeardChunk> read_chunk() {
    const uint64_t number = file_.number();
    if (number < chunks_.size()) return chunks_[number];
    file_.refuse("a sound of the file", "number " + std::to_string(number));
    return nullptr;
  }

  void read_tokens() {
    const auto vocabulary = static_cast<uint64_t>(core_.model->config().text.vocab_size);
    std::vector<int32_t> ids(file_.count("tokens", 8, kMostItems));
    for (int32_t& id : ids) {
      const uint64_t value = file_.number();
      if (value >= vocabulary) file_.refuse("ids of the vocabulary", std::to_string(value));
      id = static_cast<int32_t>(value % vocabulary);
    }
    std::vector<AudioPlace> places;
    uint64_t free_from = 0;
    for (uint64_t left = file_.count("places of sound", 16, kMostItems); left > 0 && file_.ok(); --left) {
      const uint64_t start = file_.number();
      const auto chunk = read_chunk();
      if (chunk == nullptr) return;
      const auto rows = static_cast<uint64_t>(chunk->rows);
      const auto patch = [&](int32_t id) { return id == core_.model->special().audio_patch; };
      if (start < free_from || rows == 0 || start > ids.size() || rows > ids.size() - start ||
          !std::all_of(ids.begin() + static_cast<int64_t>(start),
                       ids.begin() + static_cast<int64_t>(start + rows), patch)) {
        file_.refuse("places of sound among the tokens", "one at " + std::to_string(start));
        return;
      }
      free_from = start + rows;
      places.push_back({static_cast<int64_t>(start), chunk});
    }
    uint64_t last = 0;
    for (uint64_t left = file_.count("messages", 8, kMostItems); left > 0 && file_.ok(); --left) {
      const uint64_t end = file_.number();
      if (end < last || end > ids.size())
        file_.refuse("messages one after the other", "an end at " + std::to_string(end));
      session_->ends.push_back(static_cast<int64_t>(last = end));
    }
    session_->prefix->tokens.append(ids, places);
  }

  void read_open() {
    const uint64_t there = file_.number();
    if (there > 1) file_.refuse("an open message or none", std::to_string(there));
    if (there == 0 || !file_.ok()) return;
    OpenMessage open;
    open.role = file_.text(kMostBytes);
    if (!check_role(open.role).ok()) file_.refuse("a role", "none");
    for (uint64_t left = file_.count("parts", 16, kMostItems); left > 0 && file_.ok(); --left) {
      const uint64_t kind = file_.number();
      if (kind == 0) {
        std::string text = file_.text(kMostBytes);
        if (find_invalid(text) != text.size()) file_.refuse("UTF-8", "other bytes");
        open.parts.emplace_back(std::move(text));
        continue;
      }
      if (kind != 1) file_.refuse("a text or sounds", std::to_string(kind));
      Chunks chunks;
      for (uint64_t more = file_.count("sounds", 8, kMostItems); more > 0 && file_.ok(); --more) {
        chunks.push_back(read_chunk());
      }
      open.parts.emplace_back(std::move(chunks));
    }
    session_->open = std::move(open);
  }

  // Where the pool has no room, they are computed again when they are needed.
  Status read_keys_and_values() {
    KVPool& pool = core_.prefixes.pool();
    Prefix* prefix = session_->prefix.get();
    prefix->untrusted = true;
    const size_t each = 2 * static_cast<size_t>(pool.layers()) * pool.token_bytes();
    const auto computed = static_cast<int64_t>(
        file_.count("computed tokens", each, static_cast<uint64_t>(prefix->tokens.size())));
    KVCache cache;
    const bool room = computed > 0 && pool.allocate(computed, &cache).ok();
    const size_t bytes = static_cast<size_t>(computed) * pool.token_bytes();
    if (room) {
      const auto read = [&](char* memory, size_t size) { file_.bytes(memory, size); };
      EARNEST_RETURN_IF_ERROR(pool.write(cache.start(), computed, read));
    } else if (computed > 0) {
      std::vector<char> unused(bytes);
      for (int64_t i = 0; i < 2 * pool.layers(); ++i) file_.bytes(unused.data(), bytes);
    }
    EARNEST_RETURN_IF_ERROR(file_.finish());
    if (!room) return {};
    const std::lock_guard<std::mutex> lock(core_.mutex);
    return core_.prefixes.adopt(prefix, std::move(cache), computed);
  }

  EngineCore& core_;
  FileReader file_;
  ChunkList chunks_;
  std::shared_ptr<SessionState> session_;
  uint64_t version_ = 0;
};

}  // namespace

Status write_session(const std::string& path, EngineCore* core,
                     const std::shared_ptr<SessionState>& session) {
  Writing writing(path, core, *session);
  std::vector<SavedChunk> chunks;
  int64_t computed = 0;
  bool ahead = false;
  {
    const std::lock_guard<std::mutex> lock(core->mutex);
    for (auto& chunk : writing.collect()) chunks.push_back({chunk, chunk->mel, chunk->pcm});
    computed = session->prefix->computed;
    ahead = session->reading_ahead;  // which stops while its cache must stay where it is
    ++session->prefix->in_use;
  }
  const Status status = guarded("save", [&] { return writing.run(chunks, computed); });
  const std::lock_guard<std::mutex> lock(core->mutex);
  --session->prefix->in_use;
  if (ahead) core->read_ahead(session);
  core->work.notify_all();
  return status;
}

Status read_session(const std::string& path, EngineCore* core, std::shared_ptr<SessionState>* session) {
  return Reading(path, core).run(session);
}

}  // namespace earnest::engine
