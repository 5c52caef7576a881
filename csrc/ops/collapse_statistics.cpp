// Schema, shapes and work space of collapse_statistics, once for both devices.
#include "ops/collapse_statistics.h"

#include <algorithm>

#include "common/backend.h"

namespace lineavae {
namespace {

// An array of `count` values of T, as bytes.
template <class T>
Tensor work_space(int64_t count, const Tensor& like) {
  return empty({count * static_cast<int64_t>(sizeof(T))}, like, ScalarType::Byte);
}

// Latents share a work space of this size; where it does not hold all, some are done after others.
constexpr int64_t kWorkSpaceBytes = int64_t{1} << 27;
constexpr int64_t kFewestLatents = 256;  // a tile's

int64_t latents_at_once(int64_t rows, int cells) {
  const int64_t bytes = cells * sizeof(int64_t) + num_row_parts(rows) * sizeof(LatentMoments);
  return std::max<int64_t>(1, kWorkSpaceBytes / (bytes * kFewestLatents)) * kFewestLatents;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor& mean, const Tensor& logvar,
                                                                           const Tensor& thresholds,
                                                                           bool with_histogram) {
  constexpr const char* kOp = "collapse_statistics";
  const auto [M, N, K] = sizes_of<3>(kOp, "mean", mean);
  const auto [num_thresholds] = sizes_of<1>(kOp, "thresholds", thresholds);
  STD_TORCH_CHECK(num_thresholds <= kMaxThresholds, kOp, ": thresholds must be at most ", kMaxThresholds, ", got ",
                  num_thresholds);
  const Checked checked(kOp, mean);
  const Tensor m = checked("mean", mean, {M, N, K}), t = checked("logvar", logvar, {M, N, K});
  const Tensor threshold = checked("thresholds", thresholds, {num_thresholds}, ScalarType::Double);
  const int E = static_cast<int>(num_thresholds), num_bins = with_histogram ? kHistogramBins : 0;
  Tensor counts = empty({M, K, E}, mean, ScalarType::Long);
  Tensor histogram = empty({M, K, num_bins}, mean, ScalarType::Long);
  Tensor moments = empty({M, K, kMoments}, mean, ScalarType::Double);
  Tensor minimum = empty({M, K}, mean, ScalarType::Double), maximum = empty({M, K}, mean, ScalarType::Double);
  Tensor infinite = empty({M, K}, mean, ScalarType::Long), nan = empty({M, K}, mean, ScalarType::Long);
  // some of the latents of one model, or all of some models
  const int cells_per_latent = num_cells(with_histogram, E);
  const int64_t most = latents_at_once(N, cells_per_latent), K_at_once = std::min(K, most);
  const int64_t M_at_once = std::clamp<int64_t>(most / std::max<int64_t>(1, K), 1, std::max<int64_t>(1, M));
  Tensor cells = empty({M_at_once, K_at_once, cells_per_latent}, mean, ScalarType::Long);
  Tensor parts = work_space<LatentMoments>(M_at_once * num_row_parts(N) * K_at_once, mean);
  const Backend<Device> backend(mean);
  dispatch_all_floating(kOp, mean, [&]<class T>() {
    using Table = CellTable<accumulate_t<T>>;
    Tensor table = work_space<Table>(1, mean);
    for (int64_t model = 0; model < M; model += M_at_once) {
      for (int64_t latent = 0; latent < K; latent += K_at_once) {
        const int64_t from = model * N * K + latent, to = model * K + latent;
        torch::stable::zero_(cells);
        collapse_statistics(
            backend.device(),
            CollapseStatistics<T>{std::min(M_at_once, M - model), N, std::min(K_at_once, K - latent), K, E,
                                  with_histogram, input<T>(m) + from, input<T>(t) + from, input<double>(threshold),
                                  output<Table>(table), output<int64_t>(cells), output<LatentMoments>(parts),
                                  output<int64_t>(counts) + to * E, output<int64_t>(histogram) + to * num_bins,
                                  output<double>(moments) + to * kMoments, output<double>(minimum) + to,
                                  output<double>(maximum) + to, output<int64_t>(infinite) + to,
                                  output<int64_t>(nan) + to});
      }
    }
  });
  return {counts, histogram, moments, minimum, maximum, infinite, nan};
}

template <class Device>
void implement(Library& library) {
  library.impl("collapse_statistics", TORCH_BOX(&forward<Device>));
}

}  // namespace
}  // namespace lineavae

STABLE_TORCH_LIBRARY_FRAGMENT(lineavae, library) {
  library.def(
      "collapse_statistics(Tensor mean, Tensor logvar, Tensor thresholds, bool histogram) -> "
      "(Tensor counts, Tensor histogram, Tensor moments, Tensor minimum, Tensor maximum, Tensor infinite, "
      "Tensor nan)");
}

LINEAVAE_IMPLEMENT(implement)
