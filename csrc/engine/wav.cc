// SPDX-License-Identifier: Apache-2.0
#include "csrc/engine/wav.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <string_view>

namespace earnest::engine {
namespace {

using Bytes = std::span<const std::byte>;

Status wrong(const std::string& expected, const std::string& got) {
  return invalid_argument("wav", "bytes", expected, got);
}

// Little endian, of `width` bytes, whatever the machine's order.
uint64_t integer(Bytes bytes, size_t width) {
  uint64_t value = 0;
  for (size_t i = width; i-- > 0;) value = value << 8 | std::to_integer<uint64_t>(bytes[i]);
  return value;
}

std::string_view name(Bytes bytes) { return {reinterpret_cast<const char*>(bytes.data()), 4}; }

enum Encoding : uint64_t { kInteger = 1, kFloat = 3, kExtensible = 0xFFFE };

struct Format {
  uint64_t encoding = 0, channels = 0, rate = 0, width = 0;  // width: bytes of one number
};

Status read_format(Bytes chunk, Format* format) {
  if (chunk.size() < 16) return wrong("a format of 16 bytes or more", std::to_string(chunk.size()));
  const uint64_t bits = integer(chunk.subspan(14), 2), block = integer(chunk.subspan(12), 2);
  *format = {integer(chunk, 2), integer(chunk.subspan(2), 2), integer(chunk.subspan(4), 4), bits / 8};
  if (format->encoding == kExtensible && chunk.size() >= 40) format->encoding = integer(chunk.subspan(24), 2);
  const bool integers = format->encoding == kInteger && bits % 8 == 0 && bits >= 8 && bits <= 32;
  const bool floats = format->encoding == kFloat && (bits == 32 || bits == 64);
  if (!integers && !floats) {
    return wrong("PCM of 8, 16, 24 or 32 bits or float of 32 or 64",
                 "encoding " + std::to_string(format->encoding) + " of " + std::to_string(bits) + " bits");
  }
  if (format->channels < 1 || format->channels > kMostChannels) {
    return wrong("1 to " + std::to_string(kMostChannels) + " channels", std::to_string(format->channels));
  }
  if (format->rate == 0) return wrong("a sample rate", "0");
  if (block != format->channels * format->width) {
    return wrong("frames of " + std::to_string(format->channels * format->width) + " bytes",
                 std::to_string(block));
  }
  return {};
}

double number(Bytes bytes, const Format& format) {
  const uint64_t bits = integer(bytes, format.width);
  if (format.encoding == kFloat) {
    return format.width == 4 ? std::bit_cast<float>(static_cast<uint32_t>(bits))
                             : std::bit_cast<double>(bits);
  }
  if (format.width == 1) return (static_cast<double>(bits) - 128) / 128;  // 8 bits alone have no sign
  const uint64_t shift = 64 - 8 * format.width;
  return static_cast<double>(static_cast<int64_t>(bits << shift)) * 0x1p-63;
}

Status mix_down(Bytes data, const Format& format, Wav* wav) {
  const size_t frame = format.channels * format.width, frames = data.size() / frame;
  wav->rate = static_cast<int64_t>(format.rate);
  wav->samples.resize(frames);
  for (size_t i = 0; i < frames; ++i) {
    double sum = 0;
    for (size_t channel = 0; channel < format.channels; ++channel) {
      sum += number(data.subspan(i * frame + channel * format.width), format);
    }
    wav->samples[i] = static_cast<float>(sum / static_cast<double>(format.channels));
    if (!std::isfinite(wav->samples[i])) {
      return wrong("finite samples", "NaN or infinity at sample " + std::to_string(i));
    }
  }
  return {};
}

}  // namespace

Status read_wav(Bytes bytes, double most_seconds, Wav* wav) {
  if (bytes.size() < 12 || name(bytes) != "RIFF" || name(bytes.subspan(8)) != "WAVE") {
    return wrong("a RIFF WAVE file", std::to_string(bytes.size()) + " bytes of something else");
  }
  Format format;
  bool known = false;
  for (Bytes rest = bytes.subspan(12); rest.size() >= 8;) {
    const std::string_view kind = name(rest);
    const uint64_t said = integer(rest.subspan(4), 4);
    rest = rest.subspan(8);
    // Programs that write to a pipe do not know the length: all, nothing, or about 2 or 4 GiB.
    const bool open = kind == "data" && (said >= 0xFFFFF000 || (said >= 0x7FFFF000 && said <= 0x80000000));
    if (said > rest.size() && !open) {
      return wrong("a whole file", "one that lacks " + std::to_string(said - rest.size()) + " bytes");
    }
    const Bytes chunk = rest.first(open ? rest.size() : said);
    if (kind == "fmt ") {
      const Status status = read_format(chunk, &format);
      if (!status.ok()) return status;
      known = true;
    } else if (kind == "data") {
      if (!known) return wrong("a format before the samples", "none");
      const size_t frame = format.channels * format.width;
      const double seconds = static_cast<double>(chunk.size() / frame) / static_cast<double>(format.rate);
      if (!(seconds <= most_seconds)) {
        return wrong("at most " + std::to_string(most_seconds) + " s", std::to_string(seconds));
      }
      return mix_down(chunk, format, wav);
    }
    rest = rest.subspan(std::min<size_t>(rest.size(), chunk.size() + chunk.size() % 2));
  }
  return wrong("samples", "no data chunk");
}

}  // namespace earnest::engine
