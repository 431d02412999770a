// SPDX-License-Identifier: Apache-2.0
// The CUDA back end's ways to a result: sm80 (cp.async, ldmatrix, mma.sync) runs on every GPU of compute
// capability 8.0 or more; sm90a (TMA, wgmma) on 9.0.
#pragma once

#include "kernels/attention/attention_backward_plan.h"
#include "kernels/attention/attention_pieces.h"
#include "kernels/attention/attention_plan.h"
#include "kernels/common/status.h"

namespace earnest::attention::gpu {

constexpr const char* kOp = "attention";

// Lists the tiles of rows (attention_cuda.cu), or of keys for the backward pass, the longest first.
Status order_rows(const Params& params, const Plan& plan, Tile* order);
Status order_keys(const Params& params, const Plan& plan, Tile* order);

// Whether a grid can have a block for each slot and key head.
Status check_slots(const char* argument, const Params& params, const Plan& plan);

// Joins what pieces of sequences of one query have left behind, where there can be any.
Status join_parts(const Params& params, const Output& output, const Plan& plan, const Parts& parts);

namespace sm80 {
// `order` lists plan.slots tiles, or is null: slots are taken as tile_of lays them out.
Status forward(const Params& params, const Output& output, const Plan& plan, const Tile* order);
// The same of a plan with most_keys, up to what join_parts does. `parts`: of parts_floats(params).
Status forward_in_pieces(const Params& params, const Output& output, const Plan& plan, const Tile* order,
                         const Parts& parts);
// The same of both plans. `numbers`: of every row.
Status backward(const Params& params, const Gradients& gradients, const BackwardPlan& plan,
                const RowNumbers* numbers, const Tile* row_order, const Tile* key_order);
}  // namespace sm80

namespace sm90a {
// The same of a plan with kTileRows, where there are keys.
Status forward(const Params& params, const Output& output, const Plan& plan, const Tile* order);
Status forward_in_pieces(const Params& params, const Output& output, const Plan& plan, const Tile* order,
                         const Parts& parts);
// Of the plan's tiles of keys.
Status backward(const Params& params, const Gradients& gradients, const BackwardPlan& plan,
                const RowNumbers* numbers, const Tile* key_order);
}  // namespace sm90a

}  // namespace earnest::attention::gpu
