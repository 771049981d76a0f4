// The Python module, beside the ops. pybind11 cannot be included beside the stable headers, so it lives here alone.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "cpu/processor.h"
#include "pools.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["torch"] = PHASEFAST_TORCH_VERSION;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
#ifdef PHASEFAST_CUDA_VERSION
  info["cuda"] = true;
  info["cuda_version"] = PHASEFAST_CUDA_VERSION;
  info["archs"] = py::tuple(py::str(PHASEFAST_ARCHS).attr("split")());
#else
  info["cuda"] = false;
  info["cuda_version"] = py::none();
  info["archs"] = py::tuple();
#endif
  info["products"] = std::string(phasefast::kProducts[static_cast<size_t>(phasefast::products().load())]);
  info["bfloat16_is_fast"] = phasefast::bfloat16_is_fast();
  info["flags"] = PHASEFAST_FLAGS;
  const unsigned long long target = TORCH_TARGET_VERSION;
  info["abi_target"] = py::str(std::to_string(target >> 56) + "." + std::to_string((target >> 48) & 0xff));
  return info;
}

void use_products(const std::string& name) {
  for (size_t i = 0; i < phasefast::kProducts.size(); ++i) {
    if (phasefast::kProducts[i] == name && phasefast::processor_has(phasefast::Products(i))) {
      phasefast::products() = phasefast::Products(i);
      return;
    }
  }
  throw std::invalid_argument("this processor has no " + name);
}

template <typename T>
using Matrix = py::array_t<T, py::array::c_style>;

void pools(const Matrix<double>& curves, const Matrix<double>& slack, Matrix<double>& errors, Matrix<int64_t>& starts,
           Matrix<double>& levels) {
  const auto same = [&](const py::array& other) {
    return other.ndim() == 2 && other.shape(0) == curves.shape(0) && other.shape(1) == curves.shape(1);
  };
  const bool fit = curves.ndim() == 2 && same(errors) && same(starts) && same(levels);
  if (!fit || slack.ndim() != 1 || slack.shape(0) != curves.shape(0)) {
    throw std::invalid_argument("pools: expected four matrices of one shape, and a slack for each row");
  }
  const int64_t rows = curves.shape(0), size = curves.shape(1);
  const double *from = curves.data(), *apart = slack.data();
  double *error = errors.mutable_data(), *level = levels.mutable_data();
  int64_t* start = starts.mutable_data();
  const py::gil_scoped_release release;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = row * size;
    phasefast::pool(from + at, size, apart[row], error + at, start + at, level + at);
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Loading this module registers the ops torch.ops.phasefast.*";
  m.def("build_info", &build_info, "How this module was built.");
  m.def("use_products", &use_products,
        "From now on multiply by blas, avx2, avx512 or amx: for tests, while no op is running.");
  m.def("pools", &pools,
        "Isotonic regressions of curves [R, K] into errors, starts and levels, see phasefast/phases/valley.py.",
        py::arg("curves").noconvert(), py::arg("slack").noconvert(), py::arg("errors").noconvert(),
        py::arg("starts").noconvert(), py::arg("levels").noconvert());
}
