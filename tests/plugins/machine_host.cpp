// The machine of plugins/machine.hpp on the CPU: the plugin's own calls, as they would go to a GPU, run the kernels on
// memory of this process. A test says what device it shall be, and reads what was asked of it.

#include "machine.hpp"

#include "host_kernels.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

bnfold::plugin::Device device;
int refusing;  // bit 0: launches in clusters, bit 1: cooperative ones, bit 2: all
unsigned long long seed;
std::string asked, told;

}  // namespace

namespace bnfold::plugin::machine {

std::string unusable() { return {}; }

std::string limits(Device& found) {
    found = device;
    return {};
}

void refused(const Device& less) {
    asked += "kept\n";
    device.clusters = std::min(device.clusters, less.clusters);
    device.cooperative = device.cooperative && less.cooperative;
}

std::string zero(void* memory, std::size_t bytes, cudaStream_t) {
    asked += "zero\n";
    std::memset(memory, 0, bytes);
    return {};
}

std::string copy(void* to, const void* from, std::size_t bytes, cudaStream_t) {
    asked += "copy\n";
    std::memcpy(to, from, bytes);
    return {};
}

std::string launch(Kernel kernel, Type type, const Launch& launch, const Argument* arguments, int count,
                   cudaStream_t) {
    if ((refusing & 4) || ((refusing & 1) && launch.cluster > 1) || ((refusing & 2) && launch.cooperative)) {
        asked += std::string("refused ") + launch.row + '\n';
        return "no room";
    }
    asked += std::string(launch.row) + '\n';
    using Run = const char* (*)(const Launch&, const host::Launch&, const host::Argument*, int);
    constexpr Run all[][3] = {
        {host_launch<Kernel::forward, Type::float32>, host_launch<Kernel::forward, Type::float16>,
         host_launch<Kernel::forward, Type::bfloat16>},
        {host_launch<Kernel::apply, Type::float32>, host_launch<Kernel::apply, Type::float16>,
         host_launch<Kernel::apply, Type::bfloat16>}};
    const host::Launch shape = {launch.grid,   launch.block,         launch.cluster, launch.cooperative,
                                launch.shared, device.shared_memory, seed};
    std::vector<host::Argument> given;
    for (int i = 0; i < count; ++i) given.push_back({arguments[i].value, {arguments[i].size, arguments[i].kind}});
    const char* wrong = all[static_cast<int>(kernel)][static_cast<int>(type)](launch, shape, given.data(), count);
    return wrong ? wrong : "";
}

}  // namespace bnfold::plugin::machine

#define HARNESS extern "C" __attribute__((visibility("default")))

HARNESS void machine_set(int multiprocessors, long long shared, int clusters, int cooperative, const int* at_once,
                         int refuse, unsigned long long schedule) {
    device = {multiprocessors, shared, clusters, cooperative != 0, {at_once[0], at_once[1], at_once[2]}};
    refusing = refuse;
    seed = schedule;
}
// What was asked since the last call, a line each: "zero", "copy", "kept" (that the device has refused), or the row of
// the launch table.
HARNESS const char* machine_asked() {
    told = std::move(asked);
    asked.clear();
    return told.c_str();
}

// The launch table, for the test that compares it with launch.py: null, or a line of numbers and the row's name.
HARNESS const char* plan_text(int kernel, int type, long long outer, long long channels, long long inner, int aligned,
                              int multiprocessors, long long shared, int clusters, int cooperative,
                              const int* at_once) {
    using namespace bnfold::plugin;
    const Problem problem{static_cast<Kernel>(kernel), static_cast<Type>(type), outer, channels, inner, aligned != 0};
    const Device asks{multiprocessors, shared, clusters, cooperative != 0, {at_once[0], at_once[1], at_once[2]}};
    const auto found = plan(problem, asks);
    if (!found) return nullptr;
    told.clear();
    const long long numbers[] = {static_cast<int>(found->layout), static_cast<int>(found->exchange), found->width,
                                 found->grid, found->block, found->cluster, found->cooperative, found->shared,
                                 found->group, found->ranks, found->window, found->units};
    for (const long long number : numbers) told += std::to_string(number) + ' ';
    told += found->row;
    return told.c_str();
}
