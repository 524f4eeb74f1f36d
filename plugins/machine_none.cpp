#include "machine.hpp"

namespace bnfold::plugin::machine {
namespace {

const char* const kNone =
    "this plugin library was built without kernels, which need the CUDA compiler: install nvcc and run "
    "tools/build_plugin again";

}  // namespace

std::string unusable() { return kNone; }
std::string limits(Device&) { return kNone; }
void refused(const Device&) {}
std::string zero(void*, std::size_t, cudaStream_t) { return kNone; }
std::string copy(void*, const void*, std::size_t, cudaStream_t) { return kNone; }
std::string launch(Kernel, Type, const Launch&, const Argument*, int, cudaStream_t) { return kNone; }

}  // namespace bnfold::plugin::machine
