// Instruction sets: what the machine has, what this build has, and which of them serves.
#pragma once

#include <string>
#include <vector>

namespace slap_fast {

// In order: each includes those before it.
enum class Isa { baseline, avx2, avx512, avx512_bf16 };

const char* isa_name(Isa isa);

// The highest that this machine runs, the operating system's part included.
Isa detected_isa();

// Those that this build has code for, in order.
std::vector<Isa> compiled_isas();

// The one that serves: the highest that is both detected and compiled, unless force_isa chose another.
Isa chosen_isa();

// Throws std::invalid_argument for an unknown name, or one that this machine or this build lacks.
void force_isa(const std::string& name);

}  // namespace slap_fast
