// Calls a kernel of any signature with arguments that are known only when the tests run.

#pragma once

#include <type_traits>
#include <utility>

namespace bnfold::host {

struct Launch {
    int grid, block, cluster, cooperative;
    long long shared, most_shared;
    unsigned long long seed;  // 0: threads take their turns in order
};

// kind: 'p' a pointer, 'f' a floating-point number, 'i' an integer, 'v' any other value.
struct Parameter {
    int size;
    char kind;
};
struct Argument {
    const void* bytes;
    Parameter type;
};

// Each gives null or, until the next launch, what went wrong.
const char* mismatch(const Parameter* wanted, int number, const Argument* arguments, int count);
const char* run(const Launch& launch, void (*call)(const void*), const void* kernel);

template <class... A>
struct Kernel {
    void (*code)(A...);
    const Argument* arguments;

    template <std::size_t... I>
    void call(std::index_sequence<I...>) const {
        code(*static_cast<const A*>(arguments[I].bytes)...);
    }
    static void call(const void* kernel) {
        static_cast<const Kernel*>(kernel)->call(std::index_sequence_for<A...>());
    }
};

template <class A>
constexpr char kind = std::is_pointer_v<A>          ? 'p'
                      : std::is_floating_point_v<A> ? 'f'
                      : std::is_integral_v<A>       ? 'i'
                                                    : 'v';

template <class... A>
const char* launch(void (*code)(A...), const Launch& launch, const Argument* arguments, int count) {
    const Parameter wanted[] = {{sizeof(A), kind<A>}..., {0, 0}};
    if (const char* wrong = mismatch(wanted, sizeof...(A), arguments, count)) return wrong;
    const Kernel<A...> kernel{code, arguments};
    return run(launch, &Kernel<A...>::call, &kernel);
}

}  // namespace bnfold::host

// A kernel by its place in the list that host.py was given; the generated source defines it.
extern "C" __attribute__((visibility("default"))) const char* bnfold_launch(
    int kernel, const bnfold::host::Launch* launch, const bnfold::host::Argument* arguments, int count);
