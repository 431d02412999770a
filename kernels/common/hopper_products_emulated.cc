// SPDX-License-Identifier: Apache-2.0
// Products by a warpgroup, each warp's 16 rows at a time of their own. Sums in float64, rounded once per
// product; the hardware's own order of sums is not published.
#include <cstring>

#include "kernels/common/hopper_beside.h"
#include "kernels/common/hopper_layout.h"

namespace earnest::simt::emulator {
namespace {

constexpr uint32_t kHidden = 0xffc0dead;  // a NaN: in sums of products under way
constexpr int kLanes = 32, kDepth = 16, kRows = 16;

int own_warp() { return thread_number() / kLanes; }
WarpProducts& own_products() { return HopperState::here().own_block().products[own_warp()]; }

// An operand in shared memory by its descriptor (PTX ISA, "Asynchronous warpgroup level matrix shared memory
// layout": strides, canonical layouts and the 128-byte swizzle).
class SharedOperand {
 public:
  SharedOperand(uint64_t descriptor, bool transposed, const Place& place)
      : start_(field(descriptor, 0)),
        leading_(field(descriptor, 16)),
        stride_(field(descriptor, 32)),
        transposed_(transposed),
        memory_(memory_of(cluster_rank())),
        proxy_(HopperState::here().block(memory_).proxy),
        place_(place) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0)
      fail_at(place_, "a descriptor of the 128-byte swizzle with base offset 0", std::to_string(descriptor));
  }

  // Eight numbers: of the row from step k as it is, of the step from the row on transposed.
  const char* eight(int row, int k) const {
    const auto r = static_cast<uint32_t>(row), d = static_cast<uint32_t>(k);
    const uint32_t plain = transposed_
                               ? start_ + r / 64 * leading_ + r % 64 * 2 + d / 8 * stride_ + d % 8 * 128
                               : start_ + r / 8 * stride_ + r % 8 * 128 + d * 2;
    const uint32_t address = plain ^ (plain >> 7 & 7) << 4;
    if (address < memory_.address || address + 16 > memory_.address + memory_.bytes)
      fail_at(place_, "operands in dynamic shared memory", "address " + std::to_string(address));
    const size_t offset = address - memory_.address;
    if (std::memcmp(memory_.data + offset, proxy_.data() + offset, 16) != 0)
      fail_at(place_, "fence_shared and a barrier between what threads write and products of it", "none");
    return memory_.data + offset;
  }

  // to[row - first][k] of `count` rows.
  void read(int first, int count, Widen widen, float (*to)[kDepth]) const {
    for (int row = first; row < first + count; row += transposed_ ? 8 : 1) {
      for (int k = 0; k < kDepth; k += transposed_ ? 1 : 8) {
        uint16_t bits[8];
        std::memcpy(bits, eight(row, k), sizeof bits);
        for (int i = 0; i < 8; ++i) {
          if (transposed_) {
            to[row - first + i][k] = widen(bits[i]);
          } else {
            to[row - first][k + i] = widen(bits[i]);
          }
        }
      }
    }
  }

 private:
  static uint32_t field(uint64_t descriptor, int bit) {
    return static_cast<uint32_t>(descriptor >> bit & 0x3fff) * 16;
  }

  uint32_t start_, leading_, stride_;
  bool transposed_;
  BlockMemory memory_;
  const std::vector<char>& proxy_;
  const Place& place_;
};

// The warp's own rows. Of an operand in shared memory the hardware may read all 64 for any warp.
void read_left(const Product& product, int warp, float (&a)[kRows][kDepth]) {
  if (!product.left_in_registers) {
    float all[4 * kRows][kDepth];
    SharedOperand(product.left.descriptor, product.left.transposed, product.place)
        .read(0, 4 * kRows, product.widen, all);
    std::memcpy(a, all[warp % 4 * kRows], sizeof a);
    return;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const uint32_t pair = product.left_registers[lane][i / 2];
      a[lane / 4 + i / 2 % 2 * 8][2 * (lane % 4) + i / 4 * 8 + i % 2] =
          product.widen(static_cast<uint16_t>(i % 2 == 0 ? pair : pair >> 16));
    }
  }
}

// Most of the emulator's time; its bounds are plain to see. Each sum goes along the depth, in order: sixteen
// rows are sixteen sums.
__attribute__((no_sanitize("address", "undefined"))) void add_products(const float (&a)[kRows][kDepth],
                                                                       const float (*b)[kDepth],
                                                                       Accumulator* sums) {
  using Rows = double __attribute__((vector_size(kRows * sizeof(double))));
  Rows steps[kDepth];
  for (int k = 0; k < kDepth; ++k)
    for (int row = 0; row < kRows; ++row) steps[k][row] = a[row][k];
  float* const d = sums->sums.data();
  for (int column = 0; column < sums->count * 2; ++column) {
    int places[kRows];  // lane by lane
    for (int row = 0; row < kRows; ++row) {
      const int lane = row % 8 * 4 + column % 8 / 2;
      places[row] = lane * sums->count + column / 8 * 4 + row / 8 * 2 + column % 2;
    }
    Rows all;
    for (int row = 0; row < kRows; ++row) all[row] = d[places[row]];
    for (int k = 0; k < kDepth; ++k) all += steps[k] * b[column][k];
    for (int row = 0; row < kRows; ++row) d[places[row]] = static_cast<float>(all[row]);
  }
}

void compute(const Product& product, int warp) {
  static thread_local float b[256][kDepth];
  float a[kRows][kDepth];
  read_left(product, warp, a);
  SharedOperand(product.right.descriptor, product.right.transposed, product.place)
      .read(0, product.into->count * 2, product.widen, b);
  add_products(a, b, product.into.get());
}

void compute_through(WarpProducts& warp, size_t end) {
  for (size_t i = 0; i < end; ++i) {
    Product& product = warp.under_way[i];
    if (!product.done) compute(product, own_warp());
    product.done = true;
  }
}

// What is written back is noted: sums that nobody has changed since need no fence for another product.
void deliver(WarpProducts& warp, const std::shared_ptr<Accumulator>& sums) {
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < sums->count; ++i) {
      uint32_t bits;
      std::memcpy(&bits, sums->d[lane] + i, sizeof bits);
      if (bits != kHidden)
        fail("sums left alone from a product to its wait", "others in lane " + std::to_string(lane));
      sums->d[lane][i] = sums->sums[static_cast<size_t>(lane * sums->count + i)];
    }
  }
  warp.fenced = false;
  std::erase_if(warp.delivered, [&](const auto& one) { return one->d[0] == sums->d[0]; });
  warp.delivered.push_back(sums);
}

bool unchanged_since_wait(const WarpProducts& warp, float* const (&d)[kLanes], int count) {
  for (const auto& one : warp.delivered) {
    if (!one->is(d, count)) continue;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (std::memcmp(d[lane], &one->sums[static_cast<size_t>(lane * count)],
                      static_cast<size_t>(count) * 4) != 0)
        return false;
    }
    return true;
  }
  return false;
}

std::shared_ptr<Accumulator> accumulator_of(WarpProducts& warp, float* const (&d)[kLanes], int count,
                                            bool by_registers) {
  for (const Product& product : warp.under_way)
    if (product.into->is(d, count)) return product.into;
  if (!warp.fenced && (by_registers || !unchanged_since_wait(warp, d, count)))
    fail("begin_products between the writing of registers and their product", "none");
  auto sums = std::make_shared<Accumulator>();
  std::copy(d, d + kLanes, sums->d);
  sums->count = count;
  for (float* lane : d) {
    sums->sums.insert(sums->sums.end(), lane, lane + count);
    for (int i = 0; i < count; ++i) std::memcpy(lane + i, &kHidden, sizeof kHidden);
  }
  return sums;
}

struct Issue {
  Sums sums;
  LeftOperand left;
  RightOperand right;
  Widen widen;
};

void issue(void* const* lanes, int count) {
  const auto& first = *static_cast<const Issue*>(lanes[0]);
  float* d[kLanes];
  Product product;
  product.left = first.left, product.right = first.right, product.widen = first.widen;
  product.left_in_registers = first.left.registers != nullptr;
  product.group = 0;
  product.place = here();
  for (int lane = 0; lane < count; ++lane) {
    const auto& mine = *static_cast<const Issue*>(lanes[lane]);
    if (mine.right.descriptor != first.right.descriptor || mine.left.descriptor != first.left.descriptor)
      fail("the same descriptors in all lanes", "others in lane " + std::to_string(lane));
    d[lane] = mine.sums.d;
    if (product.left_in_registers) std::memcpy(product.left_registers[lane], mine.left.registers, 16);
  }
  WarpProducts& warp = own_products();
  ++warp.issued;
  product.into = accumulator_of(warp, d, first.sums.count, product.left_in_registers);
  ++product.into->under_way;
  warp.under_way.push_back(product);
  if (HopperState::here().at_once()) compute_through(warp, warp.under_way.size());
}

void close(void* const*, int) {
  WarpProducts& warp = own_products();
  ++warp.groups;
  for (Product& product : warp.under_way)
    if (product.group == 0) product.group = warp.groups;
}

void begin(void* const*, int) { own_products().fenced = true; }

void wait(void* const* lanes, int) {
  WarpProducts& warp = own_products();
  const auto left = *static_cast<const uint64_t*>(lanes[0]);
  size_t end = 0;
  for (const Product& product : warp.under_way) {
    if (product.group == 0 && left == 0)
      fail("close_products before the wait for all", "a product in no group");
    if (product.group != 0 && product.group + left <= warp.groups) ++end;
  }
  compute_through(warp, end);
  for (size_t i = 0; i < end; ++i) {
    const auto& sums = warp.under_way[i].into;
    if (--sums->under_way == 0) deliver(warp, sums);
  }
  warp.under_way.erase(warp.under_way.begin(), warp.under_way.begin() + static_cast<std::ptrdiff_t>(end));
}

}  // namespace

void multiply(const char* name, const Sums& sums, const LeftOperand& left, const RightOperand& right,
              Widen widen, const Site& site) {
  Issue mine{sums, left, right, widen};
  meet_warp(name, 0xffffffffu, &mine, &issue, site);
}
void begin_products(const Site& site) { meet_warp("begin_products", 0xffffffffu, nullptr, &begin, site); }
void close_products(const Site& site) { meet_warp("close_products", 0xffffffffu, nullptr, &close, site); }
void wait_for_products(int groups_left, const Site& site) {
  auto left = static_cast<uint64_t>(groups_left);
  meet_warp("wait_products", 0xffffffffu, &left, &wait, site);
}

void HopperState::end_thread() {
  const auto block = blocks_.find(memory_of(cluster_rank()).block);
  if (block == blocks_.end()) return;
  const auto warp = block->second.products.find(own_warp());
  if (warp != block->second.products.end() && !warp->second.under_way.empty())
    fail("wait_products before the end of a warp", "products under way");
}

}  // namespace earnest::simt::emulator
