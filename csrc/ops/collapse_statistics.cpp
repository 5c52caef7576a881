// Schema, shapes and work space of collapse_statistics, once for both devices.
#include "ops/collapse_statistics.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "common/backend.h"

namespace lineavae {
namespace {

// Latents share a work space of this size; where it does not hold all, some are done after others.
constexpr int64_t kWorkSpaceBytes = int64_t{1} << 27;
constexpr int64_t kFewestLatents = 256;  // a tile's

// The thresholds are these numbers, or else those of the tensor, which are read on its device when the kernel runs.
template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor& mean, const Tensor& logvar,
                                                                           const std::vector<double>& numbers,
                                                                           const std::optional<Tensor>& in_memory,
                                                                           bool with_histogram) {
  constexpr const char* kOp = "collapse_statistics";
  const auto [M, N, K] = sizes_of<3>(kOp, "mean", mean);
  STD_TORCH_CHECK(numbers.empty() || !in_memory, kOp, ": thresholds must be numbers or a tensor, got both");
  const int64_t E = in_memory ? sizes_of<1>(kOp, "thresholds", *in_memory)[0] : static_cast<int64_t>(numbers.size());
  STD_TORCH_CHECK(E <= kMaxThresholds, kOp, ": thresholds must be at most ", kMaxThresholds, ", got ", E);
  const Checked checked(kOp, mean);
  const Tensor m = checked("mean", mean, {M, N, K}), t = checked("logvar", logvar, {M, N, K});
  Thresholds thresholds{static_cast<int>(E), nullptr, {}};
  std::copy(numbers.begin(), numbers.end(), thresholds.number);
  std::optional<Tensor> held;
  if (in_memory) {
    held = checked("thresholds", *in_memory, {E}, ScalarType::Double);
    thresholds.in_memory = input<double>(*held);
  }
  const int64_t num_bins = with_histogram ? kHistogramBins : 0;
  Tensor counts = empty({M, K, E}, mean, ScalarType::Long);
  Tensor histogram = empty({M, K, num_bins}, mean, ScalarType::Long);
  Tensor moments = empty({M, K, kMoments}, mean, ScalarType::Double);
  Tensor minimum = empty({M, K}, mean, ScalarType::Double), maximum = empty({M, K}, mean, ScalarType::Double);
  Tensor infinite = empty({M, K}, mean, ScalarType::Long), nan = empty({M, K}, mean, ScalarType::Long);
  const int64_t part_rows = rows_per_part(N, M * K);
  const Backend<Device> backend(mean);
  dispatch_all_floating(kOp, mean, [&]<class T>() {
    CollapseStatistics<T> all{M,
                              N,
                              K,
                              K,
                              part_rows,
                              num_row_parts(N, part_rows),
                              with_histogram,
                              thresholds,
                              input<T>(m),
                              input<T>(t),
                              nullptr,
                              nullptr,
                              output<int64_t>(counts),
                              output<int64_t>(histogram),
                              output<double>(moments),
                              output<double>(minimum),
                              output<double>(maximum),
                              output<int64_t>(infinite),
                              output<int64_t>(nan)};
    // some of the latents of one model, or all of some models
    const int64_t parts_bytes = all.num_parts * sizeof(LatentMoments),
                  bytes = parts_bytes + (all.num_cells() + 1) * sizeof(int64_t);  // of a latent
    const int64_t most = std::max<int64_t>(1, kWorkSpaceBytes / (bytes * kFewestLatents)) * kFewestLatents;
    const int64_t K_at_once = std::min(K, most),
                  M_at_once = std::clamp<int64_t>(most / std::max<int64_t>(1, K), 1, std::max<int64_t>(1, M));
    const int64_t at_once = M_at_once * K_at_once;
    Tensor work = empty({at_once * bytes}, mean, ScalarType::Byte);
    all.parts = output<LatentMoments>(work);
    all.cells = reinterpret_cast<int64_t*>(all.parts + at_once * all.num_parts);
    for (int64_t model = 0; model < M; model += M_at_once) {
      for (int64_t latent = 0; latent < K; latent += K_at_once) {
        collapse_statistics(backend.device(),
                            all.some(model, std::min(M_at_once, M - model), latent, std::min(K_at_once, K - latent)));
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
      "collapse_statistics(Tensor mean, Tensor logvar, float[] thresholds, Tensor? thresholds_tensor, "
      "bool histogram) -> "
      "(Tensor counts, Tensor histogram, Tensor moments, Tensor minimum, Tensor maximum, Tensor infinite, "
      "Tensor nan)");
}

LINEAVAE_IMPLEMENT(implement)
