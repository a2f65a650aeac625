// What the evaluation without autograd exports to `engine.py`.

#include "engine_painn.hpp"
#include "engine_schnet.hpp"

#define EXPORT(NAME, T)                                                                                             \
    extern "C" void engine_painn_##NAME(EngineArguments<T>* a) { evaluate<T, PainnEngine>(*a); }                 \
    extern "C" void engine_schnet_##NAME(EngineArguments<T>* a) { evaluate<T, SchnetEngine>(*a); }               \
    extern "C" void layout_painn_##NAME(EngineArguments<T>* a) { lay_out<T, PainnWeights<T>>(*a); }                 \
    extern "C" void layout_schnet_##NAME(EngineArguments<T>* a) { lay_out<T, SchnetWeights<T>>(*a); }

EXPORT(float32, float)
EXPORT(float64, double)
