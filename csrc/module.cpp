// The Python module, beside the ops. pybind11 cannot be included beside the stable headers, so it lives here alone.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "cpu/processor.h"

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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Loading this module registers the ops torch.ops.phasefast.*";
  m.def("build_info", &build_info, "How this module was built.");
  m.def("use_products", &use_products,
        "From now on multiply by blas, avx2, avx512 or amx: for tests, while no op is running.");
}
