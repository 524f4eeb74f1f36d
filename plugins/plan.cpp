#include "plan.hpp"

#include <algorithm>
#include <iterator>
#include <limits>
#include <numeric>
#include <vector>

namespace bnfold::plugin {
namespace {

constexpr int kThreads = 512, kVector = 16, kTile = 64, kMostRanks = 160;
constexpr int kSlots = 33;  // sets that a warp leaves, where vectors of several channels are summed
constexpr long long kMostColumns = 1 << 26;  // channels that launch.py reads as columns

// What a kernel keeps in shared memory: tensors staged, and bytes a channel, a warp and slot, and a rank.
struct Memory {
    int staged, channel, scratch, rank;

    long long shared(long long window_bytes, int slots) const {
        return staged * window_bytes + channel * kMostGroup + rank * kMostRanks + scratch * slots * kThreads / 32;
    }
};
constexpr Memory kMemory[] = {{1, 3 * 12 + 8 + 4, 12, 4}, {0, 12, 0, 0}};  // by `Kernel`

long long ceiling(long long a, long long b) { return (a + b - 1) / b; }

struct Reading {
    Layout layout;
    int width, group;
    bool fits;
};

Reading columns(const Problem& p) {
    const int size = size_of(p.type), width = kVector / size;
    int group = 2 * width;
    while (group < p.channels && group * size < kTile) group *= 2;
    const bool whole = p.aligned && p.channels % width == 0;
    return {Layout::columns, width, group, p.inner == 1 && whole && p.channels <= kMostColumns};
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
Reading single_columns(const Problem& p) {
    return {Layout::columns, 1, 32, p.inner == 1 && p.channels <= kMostColumns};
}
Reading single_plane(const Problem& p) { return {Layout::plane, 1, 1, p.inner < 1ll << 30}; }

constexpr Reading (*kLayouts[])(const Problem&) = {columns, plane, planes, single_columns, single_plane};

// What the rows of the table judge by.
struct Fit {
    const Problem& problem;
    const Device& device;
    const Reading reading;

    const Memory& memory() const { return kMemory[static_cast<int>(problem.kernel)]; }
    long long units() const { return ceiling(problem.channels, reading.group); }
    int slots() const {
        if (reading.layout != Layout::columns) return 1;
        return reading.width > 1 ? kSlots : reading.group;
    }
    int vector() const { return reading.width * size_of(problem.type); }

    long long capacity() const {
        long long most = 1 << 20;
        if (memory().staged) {
            const long long free = device.shared_memory - memory().shared(0, slots());
            most = free < 0 ? 0 : free / (1ll * memory().staged * vector());
        }
        if (reading.layout == Layout::columns) most = std::min(most, (1ll << 32) / units());
        return most / kThreads * kThreads;
    }
    long long part(long long ranks) const {
        const long long row = reading.group * problem.inner / reading.width;
        if (reading.layout == Layout::columns) return ceiling(problem.outer, ranks) * row;
        return ceiling(problem.outer * row, ranks);
    }
    bool fits(long long ranks) const { return part(ranks) <= capacity(); }
};

// A line of the table: the numbers of blocks of a unit that are possible, of how many units a device has the blocks
// at one time, and bytes that a block could stage while it waits for others.
struct Row {
    const char* name;
    Exchange exchange;
    std::vector<int> (*ranks)(const Fit&);
    int (*at_once)(const Device&, int);
    long long barrier;

    // 32 bytes of channels a unit where all blocks of a grid do not hold 64.
    Fit fit(const Problem& problem, const Device& device, const Reading& reading) const {
        const Fit wide{problem, device, reading};
        const bool narrows = exchange == Exchange::grid && reading.layout == Layout::columns && reading.width > 1;
        if (!narrows || wide.fits(std::min(device.multiprocessors, kMostRanks))) return wide;
        return {problem, device, {reading.layout, reading.width, 2 * reading.width, true}};
    }
    // Bytes that a block stages at most, with those that it could while it waits for others.
    long long cost(const Fit& fit, int ranks) const {
        const long long part = fit.part(ranks), again = std::max(0ll, part - fit.capacity());
        const long long staged = (part + again) * fit.memory().staged * fit.vector();
        return ceiling(fit.units(), at_once(fit.device, ranks)) * (staged + barrier);
    }
};

int blocks(const Device& device, int) { return device.multiprocessors; }
int clusters(const Device& device, int size) {
    if (size > device.clusters) return 0;
    const int told = device.at_once[std::find(std::begin(kClusterSizes), std::end(kClusterSizes), size) - kClusterSizes];
    return told < 0 ? std::max(1, device.multiprocessors / size) : told;
}
int teams(const Device& device, int ranks) { return device.multiprocessors / ranks; }

std::vector<int> alone(const Fit& fit) { return fit.fits(1) ? std::vector<int>{1} : std::vector<int>{}; }

std::vector<int> cluster(const Fit& fit) {
    std::vector<int> found;
    for (const int size : kClusterSizes) {
        if (clusters(fit.device, size) && fit.fits(size)) found.push_back(size);
    }
    return found;
}

std::vector<int> grid(const Fit& fit) {
    std::vector<int> found;
    if (!fit.device.cooperative) return found;
    const int most = std::min(fit.device.multiprocessors, kMostRanks);
    for (int ranks = 1; ranks <= most; ++ranks) {
        if (fit.fits(ranks)) found.push_back(ranks);
    }
    if (found.empty()) found.push_back(most);
    return found;
}

std::vector<int> windows(const Fit&) { return {1}; }

std::vector<int> stream(const Fit& fit) {
    const long long wanted = ceiling(8ll * fit.device.multiprocessors, fit.units());
    return {static_cast<int>(std::max(1ll, std::min(wanted, fit.part(1) / (4 * kThreads))))};
}

// The last of a table serves where nothing else is possible.
constexpr Row kRows[] = {{"one block", Exchange::none, alone, blocks, 0},
                         {"cluster", Exchange::cluster, cluster, clusters, 32 << 10},
                         {"cooperative grid", Exchange::grid, grid, teams, 64 << 10},
                         {"one block, windows", Exchange::none, windows, blocks, 0}};
constexpr Row kStream[] = {{"stream", Exchange::none, stream, blocks, 0}};

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

    const bool stages = kMemory[static_cast<int>(problem.kernel)].staged != 0;
    const Row *const first = stages ? kRows : kStream, *const last = stages ? std::end(kRows) - 1 : kStream;
    const Row* row = last;
    int ranks = last->ranks({problem, device, reading}).front();
    long long least = std::numeric_limits<long long>::max();
    for (const Row* each = first; each != last; ++each) {
        const Fit fit = each->fit(problem, device, reading);
        for (const int number : each->ranks(fit)) {
            const long long cost = each->cost(fit, number);
            if (cost < least) row = each, ranks = number, least = cost;  // the first of equals
        }
    }

    const Fit fit = row->fit(problem, device, reading);
    const long long part = ceiling(fit.part(ranks), kThreads) * kThreads;
    const long long window = std::min(part, fit.capacity());
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
        fit.reading.group,
        ranks,
        static_cast<int>(window),
        static_cast<int>(fit.units()),
    };
}

}  // namespace bnfold::plugin
