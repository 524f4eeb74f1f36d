#include "plan.hpp"

#include <algorithm>
#include <numeric>

namespace bnfold::plugin {
namespace {

constexpr int kThreads = 512, kVector = 16, kTile = 64;

// What a kernel keeps in shared memory: tensors staged, and bytes a channel, and a warp and slot.
struct Memory {
    int staged, channel, scratch;

    long long shared(long long window_bytes, int slots) const {
        return staged * window_bytes + channel * kMostGroup + scratch * slots * kThreads / 32;
    }
};
constexpr Memory kMemory[] = {{1, 12 + 2 * 24 + 4, 8}, {0, 12, 0}};  // by `Kernel`

long long ceiling(long long a, long long b) { return (a + b - 1) / b; }

struct Reading {
    Layout layout;
    int width, group;
    bool fits;
};

Reading columns(const Problem& p) {
    const int size = size_of(p.type), width = kVector / size;
    int group = width;
    while (group < p.channels && group * size < kTile) group *= 2;
    return {Layout::columns, width, group, p.inner == 1 && p.aligned && p.channels % width == 0};
}
Reading plane(const Problem& p) {
    const int width = kVector / size_of(p.type);
    return {Layout::plane, width, 1, p.aligned && p.inner % width == 0};
}
Reading planes(const Problem& p) {
    const int width = kVector / size_of(p.type);
    const int group = width / static_cast<int>(std::gcd(p.inner, static_cast<long long>(width)));
    const bool fits = p.aligned && p.channels % group == 0 && group * p.inner < 1ll << 30;
    return {Layout::planes, width, group, fits};
}
Reading single_columns(const Problem& p) { return {Layout::columns, 1, 32, p.inner == 1}; }
Reading single_plane(const Problem& p) { return {Layout::plane, 1, 1, p.inner < 1ll << 30}; }

constexpr Reading (*kLayouts[])(const Problem&) = {columns, plane, planes, single_columns, single_plane};

// What the rows of the table judge by.
struct Fit {
    const Problem& problem;
    const Device& device;
    const Reading& reading;

    const Memory& memory() const { return kMemory[static_cast<int>(problem.kernel)]; }
    long long units() const { return ceiling(problem.channels, reading.group); }
    int slots() const { return reading.layout == Layout::columns ? reading.group : 1; }
    int vector() const { return reading.width * size_of(problem.type); }

    long long capacity() const {
        const long long free = device.shared_memory - memory().shared(0, slots());
        return free < 0 ? 0 : free / (1ll * memory().staged * vector() * kThreads) * kThreads;
    }
    long long part(long long ranks) const {
        const long long row = reading.group * problem.inner / reading.width;
        if (reading.layout == Layout::columns) return ceiling(problem.outer, ranks) * row;
        return ceiling(problem.outer * row, ranks);
    }
    long long bytes() const { return part(1) * vector() * std::max(1, memory().staged); }
};

// Blocks of a unit, or nothing where a line of the table does not fit.
using Ranks = std::optional<int>;

Ranks alone(const Fit& fit) {
    const bool busy = fit.units() >= fit.device.multiprocessors || fit.bytes() <= 32 * 1024;
    return busy && fit.part(1) <= fit.capacity() ? Ranks(1) : std::nullopt;
}

Ranks cluster(const Fit& fit) {
    Ranks most;
    for (const int size : {2, 4, 8}) {
        if (size > fit.device.clusters || fit.part(size) > fit.capacity()) continue;
        if (static_cast<double>(fit.units() * size) >= 0.9 * fit.device.multiprocessors) return size;
        most = size;
    }
    return fit.units() * fit.bytes() <= 4 << 20 ? most : std::nullopt;
}

Ranks grid(const Fit& fit) {
    const int resident = fit.device.multiprocessors;
    if (!fit.device.cooperative) return std::nullopt;
    for (int ranks = static_cast<int>(std::max(1ll, ceiling(resident, fit.units()))); ranks < resident; ++ranks) {
        const long long busy = std::min<long long>(fit.units(), resident / ranks) * ranks;
        if (fit.part(ranks) <= fit.capacity() && static_cast<double>(busy) >= 0.9 * resident) return ranks;
    }
    return resident;
}

Ranks windows(const Fit&) { return 1; }

Ranks stream(const Fit& fit) {
    const long long wanted = ceiling(8ll * fit.device.multiprocessors, fit.units());
    return static_cast<int>(std::max(1ll, std::min(wanted, fit.part(1) / (4 * kThreads))));
}

struct Row {
    const char* name;
    Exchange exchange;
    Ranks (*ranks)(const Fit&);
};
constexpr Row kRows[] = {{"one block", Exchange::none, alone},
                         {"cluster", Exchange::cluster, cluster},
                         {"cooperative grid", Exchange::grid, grid},
                         {"one block, windows", Exchange::none, windows}};
constexpr Row kStream = {"stream", Exchange::none, stream};

}  // namespace

std::optional<Launch> plan(const Problem& problem, const Device& device) {
    if (std::max(problem.channels, problem.inner) >= 1ll << 31) return std::nullopt;  // ints in the kernels
    if (problem.outer == 0 || problem.channels == 0 || problem.inner == 0) return std::nullopt;
    Reading reading{};
    for (const auto read : kLayouts) {
        reading = read(problem);
        if (reading.fits) break;
    }
    if (!reading.fits) return std::nullopt;

    const Fit fit{problem, device, reading};
    const Row* row = problem.kernel == Kernel::forward ? kRows : &kStream;
    Ranks found;
    while (!(found = row->ranks(fit))) ++row;  // the last line of each table always fits
    const int ranks = *found;

    const long long part = ceiling(fit.part(ranks), kThreads) * kThreads;
    const long long window = std::min(part, fit.memory().staged ? fit.capacity() : 1ll << 20);
    const bool cooperative = row->exchange == Exchange::grid;
    const long long at_once = cooperative ? std::min<long long>(fit.units(), device.multiprocessors / ranks)
                                          : fit.units();
    return Launch{
        row->name,
        reading.layout,
        row->exchange,
        reading.width,
        static_cast<int>(at_once * ranks),
        kThreads,
        row->exchange == Exchange::cluster ? ranks : 1,
        cooperative,
        fit.memory().shared(window * fit.vector(), fit.slots()),
        reading.group,
        ranks,
        static_cast<int>(window),
        static_cast<int>(fit.units()),
    };
}

}  // namespace bnfold::plugin
