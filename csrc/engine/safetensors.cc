// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/safetensors.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "csrc/engine/guard.h"
#include "csrc/engine/json.h"
#include "csrc/engine/mapped_file.h"
#include "csrc/engine/utf8.h"

namespace earnest::engine {
namespace {

constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr uint64_t kAnySize = std::numeric_limits<uint64_t>::max();
constexpr size_t kMostShown = 200;

// Of a name that a stranger chose: quoted, and not all of it if it is endless.
std::string shown(const std::string& name) { return json::quoted(shortened(name, kMostShown)); }

std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

std::optional<StoredType> type_named(const std::string& name) {
  for (const StoredType type :
       {StoredType::kFloat32, StoredType::kBFloat16, StoredType::kFloat16, StoredType::kBytes}) {
    if (name == name_of(type)) return type;
  }
  return std::nullopt;
}

// The bytes of a tensor, or nothing where they are more than can be counted.
std::optional<uint64_t> bytes_of(const std::vector<int64_t>& shape, StoredType type) {
  constexpr uint64_t kMost = std::numeric_limits<int64_t>::max() / 8;
  uint64_t product = size_of(type);
  for (const int64_t size : shape) {
    const auto factor = static_cast<uint64_t>(size);
    if (factor != 0 && product > kMost / factor) return std::nullopt;
    product *= factor;
  }
  return product;
}

struct Entry {
  std::string name;
  TensorView view;
  uint64_t begin = 0, end = 0;  // in the file's numbers
};

class Header {
 public:
  explicit Header(const MappedFile& file) : file_(file), name_(base_name(file.path())) {}

  Status read(std::vector<Entry>* entries) {
    EARNEST_RETURN_IF_ERROR(find());
    json::Document document;
    const std::string text(file_.text().substr(8, static_cast<size_t>(length_)));
    if (Status status = json::Document::parse(text, name_, &document); !status.ok()) {
      return {StatusCode::kCorrupt, status.message()};
    }
    if (document.root().kind() != json::Kind::kObject)
      return wrong("header", "a JSON object", "something else");
    std::set<std::string> names;
    for (const auto& [name, member] : document.root().members()) {
      if (!names.insert(name).second) return wrong("tensor " + shown(name), "one of that name", "two");
      if (name == "__metadata__") continue;
      Entry entry;
      entry.name = name;
      EARNEST_RETURN_IF_ERROR(read_entry(member, &entry));
      entries->push_back(std::move(entry));
    }
    return check_order(*entries);
  }

  uint64_t numbers() const { return 8 + length_; }  // where they begin

 private:
  Status wrong(const std::string& argument, const std::string& expected, const std::string& got) const {
    return corrupt(name_, argument, expected, got);
  }

  Status find() {
    if (file_.size() < 8) return wrong("file", "at least 8 bytes", std::to_string(file_.size()));
    for (int i = 7; i >= 0; --i) length_ = length_ << 8 | file_.data()[i];
    const uint64_t most = std::min<uint64_t>(file_.size() - 8, kMaxHeaderBytes);
    if (length_ <= most) return {};
    return wrong("header", "at most " + std::to_string(most) + " bytes", std::to_string(length_));
  }

  Status read_entry(const json::Value& member, Entry* entry) const {
    const std::string tensor = "tensor " + shown(entry->name);
    if (member.kind() != json::Kind::kObject) return wrong(tensor, "an object", "something else");
    if (member.size() != 3) return wrong(tensor, "dtype, shape and data_offsets", "other members");
    const auto dtype = member["dtype"].string();
    if (!dtype) return wrong(tensor, "a dtype", "none");
    const auto type = type_named(*dtype);
    if (!type) return wrong(tensor, "F32, BF16, F16 or U8", shown(*dtype));
    entry->view.type = *type;
    EARNEST_RETURN_IF_ERROR(read_shape(tensor, member["shape"], &entry->view.shape));
    return read_offsets(tensor, member["data_offsets"], entry);
  }

  Status read_shape(const std::string& tensor, const json::Value& value, std::vector<int64_t>* shape) const {
    if (value.kind() != json::Kind::kArray || static_cast<int64_t>(value.size()) > kMaxAxes) {
      return wrong(tensor, "a shape of at most " + std::to_string(kMaxAxes) + " axes", "something else");
    }
    for (const json::Value item : value.items()) {
      const auto size = item.integer();
      if (!size || *size < 0)
        return wrong(tensor, "a shape of whole numbers from 0 on", shown(std::string(item.text())));
      shape->push_back(*size);
    }
    return {};
  }

  Status read_offsets(const std::string& tensor, const json::Value& value, Entry* entry) const {
    std::vector<int64_t> offsets;
    for (const json::Value item : value.items()) {
      if (const auto offset = item.integer()) offsets.push_back(*offset);
      if (offsets.size() > 2) break;
    }
    const uint64_t room = file_.size() - numbers();
    if (value.size() != 2 || offsets.size() != 2 || offsets[0] < 0 || offsets[1] < offsets[0] ||
        static_cast<uint64_t>(offsets[1]) > room) {
      return wrong(tensor, "data_offsets within " + std::to_string(room) + " bytes",
                   shown(std::string(value.text())));
    }
    entry->begin = static_cast<uint64_t>(offsets[0]);
    entry->end = static_cast<uint64_t>(offsets[1]);
    const auto bytes = bytes_of(entry->view.shape, entry->view.type);
    const std::string wanted = bytes ? std::to_string(*bytes) : "more than can be addressed";
    if (bytes != entry->end - entry->begin) {
      return wrong(tensor,
                   wanted + " bytes for " + name_of(entry->view.type) + " " + shape_text(entry->view.shape),
                   std::to_string(entry->end - entry->begin));
    }
    return {};
  }

  // Each tensor begins where one before it ends: nothing is shared, nothing hidden.
  Status check_order(std::vector<Entry>& entries) const {
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    uint64_t end = 0;
    for (const Entry& entry : entries) {
      if (entry.begin != end) {
        return wrong(
            "tensor " + shown(entry.name), "numbers from byte " + std::to_string(end) + " on",
            std::to_string(entry.begin) + (entry.begin < end ? ", inside another's" : ", after a gap"));
      }
      end = entry.end;
    }
    if (numbers() + end == file_.size()) return {};
    return wrong("file", std::to_string(numbers() + end) + " bytes", std::to_string(file_.size()));
  }

  const MappedFile& file_;
  std::string name_;
  uint64_t length_ = 0;
};

Status read_file(const std::string& path, Tensors* tensors) {
  std::shared_ptr<const MappedFile> file;
  EARNEST_RETURN_IF_ERROR(MappedFile::open(path, kAnySize, &file));
  Header header(*file);
  std::vector<Entry> entries;
  EARNEST_RETURN_IF_ERROR(header.read(&entries));
  const std::string name = base_name(path);
  for (Entry& entry : entries) {
    const auto known = tensors->views.find(entry.name);
    if (known != tensors->views.end()) {
      return corrupt(name, "tensor " + shown(entry.name), "it in one file only",
                     "it in " + shown(known->second.file) + " too");
    }
    entry.view.data = file->data() + header.numbers() + entry.begin;
    entry.view.file = name;
    entry.view.mapped = file.get();
    tensors->views.emplace(entry.name, std::move(entry.view));
  }
  tensors->owners.push_back(std::move(file));
  return {};
}

// A shard lies in the folder itself.
bool is_shard_name(const std::string& name) {
  constexpr std::string_view kEnding = ".safetensors";
  return name.size() > kEnding.size() && name.find_first_of(std::string("/\\\0", 3)) == name.npos &&
         name.compare(name.size() - kEnding.size(), kEnding.size(), kEnding) == 0;
}

Status read_index(const MappedFile& file, std::map<std::string, std::string>* files) {
  json::Document document;
  if (Status status = json::Document::parse(std::string(file.text()), kIndex, &document); !status.ok()) {
    return {StatusCode::kCorrupt, status.message()};
  }
  const json::Value listed = document.root()["weight_map"];
  if (listed.kind() != json::Kind::kObject || listed.size() == 0) {
    return corrupt(kIndex, "weight_map", "an object that lists tensors", "something else");
  }
  for (const auto& [tensor, member] : listed.members()) {
    const auto name = member.string();
    if (!name || !is_shard_name(*name)) {
      return corrupt(kIndex, "tensor " + shown(tensor),
                     "a file name that ends in .safetensors, without folders",
                     shown(std::string(member.text())));
    }
    if (!files->emplace(tensor, *name).second) {
      return corrupt(kIndex, "tensor " + shown(tensor), "it once", "it twice");
    }
  }
  return {};
}

Status read_shards(const std::string& folder, const MappedFile& index, Tensors* tensors) {
  std::map<std::string, std::string> files;
  EARNEST_RETURN_IF_ERROR(read_index(index, &files));
  std::set<std::string> names;
  for (const auto& [tensor, name] : files) names.insert(name);
  for (const std::string& name : names) EARNEST_RETURN_IF_ERROR(read_file(folder + "/" + name, tensors));
  for (const auto& [tensor, name] : files) {
    const auto found = tensors->views.find(tensor);
    if (found != tensors->views.end() && found->second.file == name) continue;
    return corrupt(name, "tensor " + shown(tensor), "it there, as the index says",
                   found == tensors->views.end() ? "none" : "it in " + shown(found->second.file));
  }
  return {};
}

}  // namespace

Status read_safetensors(const std::string& path, Tensors* tensors) {
  return guarded("load", [&] { return read_file(path, tensors); });
}

Status read_checkpoint(const std::string& folder, Tensors* tensors) {
  return guarded("load", [&]() -> Status {
    std::shared_ptr<const MappedFile> index;
    const Status status = MappedFile::open(folder + "/" + kIndex, json::kMaxBytes, &index);
    if (status.ok()) return read_shards(folder, *index, tensors);
    if (status.code() != StatusCode::kNotFound) return status;
    return read_file(folder + "/" + kSingle, tensors);
  });
}

}  // namespace earnest::engine
