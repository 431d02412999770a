// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <cstring>
#include <numbers>
#include <random>
#include <string>

#include "csrc/engine/resampler.h"
#include "csrc/engine/wav.h"
#include "tests/cpp/check.h"

using namespace earnest::engine;

namespace {

std::vector<float> resampled(int64_t rate, const std::vector<float>& samples, size_t chunk = 0) {
  std::unique_ptr<Resampler> resampler;
  CHECK(Resampler::create(rate, &resampler).ok());
  std::vector<float> output;
  const std::span<const float> all = samples;
  for (size_t at = 0; at < all.size();) {
    const size_t count = std::min(chunk ? chunk : all.size(), all.size() - at);
    CHECK(resampler->push(all.subspan(at, count), &output).ok());
    at += count;
  }
  CHECK(resampler->finish(&output).ok());
  return output;
}

std::vector<float> tone(double hertz, int64_t rate, int64_t count) {
  std::vector<float> samples(static_cast<size_t>(count));
  for (size_t i = 0; i < samples.size(); ++i) {
    const double time = static_cast<double>(i) / static_cast<double>(rate);
    samples[i] = static_cast<float>(std::sin(2 * std::numbers::pi * hertz * time));
  }
  return samples;
}

// The largest difference, away from the edges, where the clip's beginning and end are heard.
double difference(const std::vector<float>& a, const std::vector<float>& b, size_t edge) {
  double most = 0;
  for (size_t i = edge; i + edge < std::min(a.size(), b.size()); ++i) {
    most = std::max(most, std::abs(static_cast<double>(a[i]) - b[i]));
  }
  return most;
}

using Text = std::string;

Text little(uint64_t value, size_t width) {
  Text bytes;
  for (size_t i = 0; i < width; ++i) bytes += static_cast<char>(value >> (8 * i));
  return bytes;
}

Text chunk(const Text& name, const Text& body) {
  return name + little(body.size(), 4) + body + Text(body.size() % 2, '\0');
}

Text format(uint64_t encoding, uint64_t channels, uint64_t rate, uint64_t bits) {
  const uint64_t block = channels * bits / 8;
  return chunk("fmt ", little(encoding, 2) + little(channels, 2) + little(rate, 4) + little(rate * block, 4) +
                           little(block, 2) + little(bits, 2));
}

Text riff(const Text& chunks) { return "RIFF" + little(chunks.size() + 4, 4) + "WAVE" + chunks; }

earnest::Status read(const Text& bytes, Wav* wav, double most_seconds = 10) {
  return read_wav(std::as_bytes(std::span(bytes)), most_seconds, wav);
}

}  // namespace

TEST(tones_below_the_band_edge_pass_and_above_it_vanish) {
  for (int64_t rate : {8000, 11025, 22050, 24000, 44100, 48000, 96000, 192000, 15999, 44056}) {
    const int64_t seconds = 1, lower = std::min<int64_t>(rate, 16000);
    for (double share : {0.02, 0.5, 0.9}) {
      const double hertz = share * static_cast<double>(lower) / 2;
      const std::vector<float> found = resampled(rate, tone(hertz, rate, rate * seconds));
      CHECK(found.size() == 16000);
      CHECK_NEAR(difference(found, tone(hertz, 16000, 16000), 400), 0, 4e-6);
    }
    if (rate > 16400) {
      const std::vector<float> alias = resampled(rate, tone(8100, rate, rate * seconds));
      CHECK_NEAR(difference(alias, std::vector<float>(16000), 400), 0, 4e-6);
    }
  }
}

TEST(the_model_rate_passes_unchanged) {
  const std::vector<float> samples = tone(440, 16000, 1001);
  CHECK(resampled(16000, samples) == samples);
}

TEST(pieces_do_not_change_a_bit) {
  std::mt19937 random(5);
  std::uniform_real_distribution<float> noise(-1, 1);
  for (int64_t rate : {8000, 44100, 48000, 15999}) {
    std::vector<float> samples(5003);
    for (float& sample : samples) sample = noise(random);
    const std::vector<float> whole = resampled(rate, samples);
    for (size_t piece : {1, 7, 160, 5000}) CHECK(resampled(rate, samples, piece) == whole);
  }
}

TEST(constants_stay_and_lengths_are_rounded) {
  for (int64_t rate : {1000, 8000, 44100, 48000, 192000}) {
    const std::vector<float> found = resampled(rate, std::vector<float>(static_cast<size_t>(rate), 0.25F));
    CHECK_NEAR(difference(found, std::vector<float>(16000, 0.25F), 2000), 0, 1e-6);
  }
  CHECK(resampled(48000, {1}).size() == 1 && resampled(192000, {1}).size() == 1);
  CHECK(resampled(8000, {1}).size() == 2 && resampled(48000, {1, 1, 1, 1, 1}).size() == 2);
}

TEST(resampling_refuses_what_it_cannot_do) {
  std::unique_ptr<Resampler> resampler;
  for (int64_t rate : {0, -1, 999, 192001}) CHECK(!Resampler::create(rate, &resampler).ok());
  CHECK(Resampler::create(8000, &resampler).ok());
  std::vector<float> output;
  CHECK(!resampler->finish(&output).ok());
  const std::vector<float> bad = {0, NAN};
  CHECK(!resampler->push(bad, &output).ok() && resampler->pushed() == 0);
  CHECK(resampler->push(std::span(bad).first(1), &output).ok() && resampler->finish(&output).ok());
  CHECK(!resampler->finish(&output).ok() && !resampler->push(std::span(bad).first(1), &output).ok());
}

TEST(every_encoding_is_read) {
  const auto bits = [](auto value) { return little(std::bit_cast<uint64_t>(static_cast<double>(value)), 8); };
  const auto single = [](float value) { return little(std::bit_cast<uint32_t>(value), 4); };
  const struct {
    uint64_t encoding, bits;
    Text data;
  } cases[] = {{1, 8, Text("\x00\x80\xC0", 3)},
               {1, 16, little(0x8000, 2) + little(0, 2) + little(0x4000, 2)},
               {1, 24, little(0x800000, 3) + little(0, 3) + little(0x400000, 3)},
               {1, 32, little(0x80000000, 4) + little(0, 4) + little(0x40000000, 4)},
               {3, 32, single(-1) + single(0) + single(0.5F)},
               {3, 64, bits(-1) + bits(0) + bits(0.5)}};
  for (const auto& one : cases) {
    Wav wav;
    CHECK(
        read(riff(chunk("LIST", "odd") + format(one.encoding, 1, 22050, one.bits) + chunk("data", one.data)),
             &wav)
            .ok());
    CHECK(wav.rate == 22050 && (wav.samples == std::vector<float>{-1, 0, 0.5F}));
  }
}

TEST(channels_are_averaged_and_extensible_headers_read) {
  Wav wav;
  const Text data = little(0x4000, 2) + little(0, 2) + little(0xC000, 2) + little(0xC000, 2);
  CHECK(read(riff(format(1, 2, 8000, 16) + chunk("data", data)), &wav).ok());
  CHECK((wav.samples == std::vector<float>{0.25F, -0.5F}));
  const Text plain = format(0xFFFE, 1, 8000, 16).substr(8);
  const Text extensible =
      chunk("fmt ", plain + little(22, 2) + little(16, 2) + little(4, 4) + little(1, 2) + Text(14, 'x'));
  CHECK(read(riff(extensible + chunk("data", little(0x4000, 2))), &wav).ok());
  CHECK(wav.samples == std::vector<float>{0.5F});
}

TEST(no_samples_are_no_error_and_a_pipe_knows_no_length) {
  Wav wav;
  CHECK(read(riff(format(1, 1, 8000, 16) + chunk("data", "")), &wav).ok() && wav.samples.empty());
  CHECK(read(riff(format(1, 1, 8000, 16) + "data" + little(0xFFFFFFFF, 4) + little(0x4000, 2)), &wav).ok());
  CHECK(wav.samples == std::vector<float>{0.5F});
}

TEST(bad_files_are_refused) {
  Wav wav;
  const Text good = riff(format(1, 2, 8000, 16) + chunk("data", Text(400, '\1')));
  CHECK(read(good, &wav).ok());
  for (size_t length = 0; length < good.size(); ++length) CHECK(!read(good.substr(0, length), &wav).ok());
  CHECK(!read(good, &wav, 0.001).ok());
  for (const Text& header :
       {format(2, 1, 8000, 16), format(1, 0, 8000, 16), format(1, 65, 8000, 16), format(1, 1, 0, 16),
        format(1, 1, 8000, 12), format(3, 1, 8000, 16), format(1, 1, 8000, 64), chunk("fmt ", "short")}) {
    CHECK(!read(riff(header + chunk("data", "1234")), &wav).ok());
  }
  CHECK(!read(riff(chunk("data", "1234") + format(1, 1, 8000, 16)), &wav).ok());
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(!read(riff(format(3, 1, 8000, 32) + chunk("data", little(std::bit_cast<uint32_t>(nan), 4))), &wav)
             .ok());
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) {  // whatever the bytes say, nothing is read beyond them
    Text changed = good.substr(0, random() % good.size());
    for (int n = 0; n < 4 && !changed.empty(); ++n)
      changed[random() % std::min<size_t>(changed.size(), 48)] = static_cast<char>(random());
    (void)read(changed, &wav);
  }
}
