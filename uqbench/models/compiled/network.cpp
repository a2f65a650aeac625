// What the evaluation without autograd exports to `network.py`.

#include "network_painn.hpp"
#include "network_schnet.hpp"

#define CALL(NAME, T, ...) \
    extern "C" int NAME(NetworkArguments<T>* a) { return status_of([&] { __VA_ARGS__(*a); }); }

#define EXPORT(NAME, T)                                                     \
    CALL(network_painn_##NAME, T, evaluate<T, PainnNetwork>)                \
    CALL(network_schnet_##NAME, T, evaluate<T, SchnetNetwork>)              \
    CALL(layout_painn_##NAME, T, lay_out<T, PainnWeights<T>>)               \
    CALL(layout_schnet_##NAME, T, lay_out<T, SchnetWeights<T>>)

EXPORT(float32, float)
EXPORT(float64, double)
