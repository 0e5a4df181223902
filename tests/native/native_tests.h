// One test function per op of csrc/cpu. Each exits with a message at the first failure.
#pragma once

namespace testing {

void test_waveform_stats();
void test_log_mel();
void test_losses();
void test_int8_product();
void test_matrix_product();
void test_rms_norm();
void test_contrastive();
void test_rotary();
void test_swiglu();
void test_varlen_attention();

}  // namespace testing
