// Schema, shapes and work space of collapse_statistics, once for both devices.
#include "ops/collapse_statistics.h"

#include "common/backend.h"

namespace lineavae {
namespace {

// An array of `count` values of T, as bytes.
template <class T>
Tensor work_space(int64_t count, const Tensor& like) {
  return empty({count * static_cast<int64_t>(sizeof(T))}, like, ScalarType::Byte);
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor& mean, const Tensor& logvar,
                                                                   const Tensor& thresholds, bool with_histogram) {
  constexpr const char* kOp = "collapse_statistics";
  STD_TORCH_CHECK(mean.dim() == 3, kOp, ": mean must have shape (M, N, K)");
  const int64_t M = mean.size(0), N = mean.size(1), K = mean.size(2);
  check_shape(kOp, "logvar", logvar, {M, N, K});
  check_like(kOp, "logvar", logvar, mean);
  STD_TORCH_CHECK(thresholds.dim() == 1 && thresholds.size(0) <= kMaxThresholds, kOp,
                  ": thresholds must have shape (E,) with E <= ", kMaxThresholds);
  STD_TORCH_CHECK(thresholds.scalar_type() == ScalarType::Double, kOp, ": thresholds must be float64");
  STD_TORCH_CHECK(thresholds.is_cuda() == mean.is_cuda() && thresholds.get_device_index() == mean.get_device_index(),
                  kOp, ": thresholds is on another device");
  const int E = static_cast<int>(thresholds.size(0));
  const Tensor m = torch::stable::contiguous(mean), t = torch::stable::contiguous(logvar);
  const Tensor threshold = torch::stable::contiguous(thresholds);
  Tensor counts = empty({M, K, E}, mean, ScalarType::Long);
  Tensor histogram = empty({M, K, with_histogram ? kHistogramBins : 0}, mean, ScalarType::Long);
  Tensor moments = empty({M, K, 1 + 2 * LatentMoments::kVariables}, mean, ScalarType::Double);
  Tensor minimum = empty({M, K}, mean, ScalarType::Double), maximum = empty({M, K}, mean, ScalarType::Double);
  Tensor nonfinite = empty({M, K}, mean, ScalarType::Long);
  Tensor cells = empty({M, K, num_cells(with_histogram, E)}, mean, ScalarType::Long);
  torch::stable::zero_(cells);
  Tensor parts = work_space<LatentMoments>(M * num_row_parts(N) * K, mean);
  const Backend<Device> backend(mean);
  dispatch_all_floating(kOp, mean, [&]<class T>() {
    using Table = CellTable<accumulate_t<T>>;
    Tensor table = work_space<Table>(1, mean);
    collapse_statistics(
        backend.device(),
        CollapseStatistics<T>{M, N, K, E, with_histogram, input<T>(m), input<T>(t), input<double>(threshold),
                              output<Table>(table), output<int64_t>(cells), output<LatentMoments>(parts),
                              output<int64_t>(counts), output<int64_t>(histogram), output<double>(moments),
                              output<double>(minimum), output<double>(maximum), output<int64_t>(nonfinite)});
  });
  return {counts, histogram, moments, minimum, maximum, nonfinite};
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
      "(Tensor counts, Tensor histogram, Tensor moments, Tensor minimum, Tensor maximum, Tensor nonfinite)");
}

LINEAVAE_IMPLEMENT(implement)
