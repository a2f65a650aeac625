// What the evaluation without autograd exports to `network.py`.

#include "network_painn.hpp"
#include "network_schnet.hpp"

#define EXPORT(NAME, T)                                                                                             \
    extern "C" void network_painn_##NAME(NetworkArguments<T>* a) { evaluate<T, PainnNetwork>(*a); }                 \
    extern "C" void network_schnet_##NAME(NetworkArguments<T>* a) { evaluate<T, SchnetNetwork>(*a); }               \
    extern "C" void layout_painn_##NAME(NetworkArguments<T>* a) { lay_out<T, PainnWeights<T>>(*a); }                 \
    extern "C" void layout_schnet_##NAME(NetworkArguments<T>* a) { lay_out<T, SchnetWeights<T>>(*a); }

EXPORT(float32, float)
EXPORT(float64, double)
