// Waveform statistics against a plain loop; bitwise equal for every instruction set and thread count.
#include "cpu/waveform_stats.h"

#include <iterator>
#include <limits>

#include "native_tests.h"
#include "testing.h"

namespace testing {
namespace {

struct Stats {
  std::vector<float> peak;
  std::vector<double> mean_square;
  std::vector<std::int64_t> nonfinite;

  bool operator==(const Stats& other) const {
    return peak == other.peak && mean_square == other.mean_square && nonfinite == other.nonfinite;
  }
};

Stats measure(const float* waveform, std::int64_t total, const std::vector<std::int64_t>& cu_seqlens, int threads) {
  const std::size_t clips = cu_seqlens.size() - 1;
  Stats stats{std::vector<float>(clips), std::vector<double>(clips), std::vector<std::int64_t>(clips)};
  slap_fast::waveform_stats(waveform, total, cu_seqlens.data(), static_cast<std::int64_t>(clips), stats.peak.data(),
                            stats.mean_square.data(), stats.nonfinite.data(), threads);
  return stats;
}

void check_against_loop(const float* waveform, const std::vector<std::int64_t>& cu_seqlens, const Stats& stats) {
  for (std::size_t clip = 0; clip + 1 < cu_seqlens.size(); ++clip) {
    float peak = 0.0f;
    long double sum = 0.0L;
    std::int64_t finite = 0;
    for (std::int64_t i = cu_seqlens[clip]; i < cu_seqlens[clip + 1]; ++i) {
      if (!std::isfinite(waveform[i])) continue;
      peak = std::fmax(peak, std::fabs(waveform[i]));
      sum += static_cast<long double>(waveform[i]) * waveform[i];
      ++finite;
    }
    const double mean = finite ? static_cast<double>(sum / finite) : 0.0;
    const std::string where = "clip " + std::to_string(clip);
    require(stats.peak[clip] == peak, where + " peak");
    require(std::fabs(stats.mean_square[clip] - mean) <= 1e-13 * mean, where + " mean square");
    require(stats.nonfinite[clip] == cu_seqlens[clip + 1] - cu_seqlens[clip] - finite, where + " non-finite count");
  }
}

void check_malformed() {
  const std::vector<float> waveform(10, 1.0f);
  const std::int64_t int64_max = std::numeric_limits<std::int64_t>::max();
  for (const std::vector<std::int64_t>& cu_seqlens : std::vector<std::vector<std::int64_t>>{{1, 10},
                                                                                            {0, 9},
                                                                                            {0, 11},
                                                                                            {0, 7, 3, 10},
                                                                                            {0, -1, 10},
                                                                                            {0, int64_max, 10},
                                                                                            {0, int64_max},
                                                                                            {-int64_max, 10},
                                                                                            {5}})
    require_rejected("malformed cu_seqlens", [&] { measure(waveform.data(), 10, cu_seqlens, 2); });
}

}  // namespace

void test_waveform_stats() {
  Random random(7);
  const std::vector<slap_fast::Isa> isas = isas_of_this_machine();
  const std::vector<std::int64_t> lengths{0, 1, 2, 31, 32, 33, 1000, 32767, 32768, 32769, 70001};
  const std::vector<float> odd{NAN, INFINITY, -INFINITY, 1e-40f, std::numeric_limits<float>::max(), -0.0f};
  for (int trial = 0; trial < 30; ++trial) {
    std::vector<std::int64_t> cu_seqlens{0};
    for (std::int64_t clip = random.between(0, 11); clip > 0; --clip)
      cu_seqlens.push_back(cu_seqlens.back() + random.of(lengths));
    const std::int64_t total = cu_seqlens.back();
    const ExactArray<float> waveform(total, random.between(0, 15));  // vector loads at every alignment of a float
    for (std::int64_t i = 0; i < total; ++i)
      waveform[i] = trial % 2 && random.once_in(50) ? random.of(odd) : random.uniform(-3.0f, 3.0f);

    slap_fast::force_isa("baseline");
    const Stats expected = measure(waveform.data(), total, cu_seqlens, 1);
    check_against_loop(waveform.data(), cu_seqlens, expected);
    for (slap_fast::Isa isa : isas) {
      slap_fast::force_isa(slap_fast::isa_name(isa));
      for (int threads : {-1, 0, 1, 3, 64})
        require(measure(waveform.data(), total, cu_seqlens, threads) == expected, "bits differ from baseline's");
    }
  }
  for (slap_fast::Isa isa : isas) {
    slap_fast::force_isa(slap_fast::isa_name(isa));
    check_malformed();
  }
  // Large enough to use several threads.
  const std::vector<float> large(3'000'001, 0.5f);
  const Stats stats = measure(large.data(), 3'000'001, {0, 1'000'000, 3'000'001}, 8);
  require(stats.peak[1] == 0.5f && stats.mean_square[1] == 0.25 && stats.nonfinite[1] == 0, "large clip");
}

}  // namespace testing
