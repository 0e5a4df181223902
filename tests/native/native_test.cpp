// Standalone test of csrc/cpu for builds with sanitizers: every instruction set, exactly sized arrays at unaligned
// addresses, empty and malformed input.
#include "native_tests.h"
#include "testing.h"

int main() {
  for (const char* name : {"", "avx", "AVX2", "baseline "})
    testing::require_rejected(std::string("instruction set '") + name + "'", [&] { slap_fast::force_isa(name); });
  testing::test_waveform_stats();
  testing::test_log_mel();
  testing::test_losses();
  testing::test_int8_product();
  testing::test_matrix_product();
  testing::test_rms_norm();
  testing::test_contrastive();
  testing::test_rotary();
  testing::test_swiglu();
  testing::test_varlen_attention();
  for (slap_fast::Isa isa : testing::isas_of_this_machine()) std::printf("%s ok\n", slap_fast::isa_name(isa));
  return 0;
}
