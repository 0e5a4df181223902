// Python bindings. Arrays are passed as addresses and sizes: no torch header is needed, and one build works with every
// torch version. The callers in slap_fast/ops check dtypes, devices and shapes.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/contrastive.h"
#include "cpu/flac_decode.h"
#include "cpu/int8_product.h"
#include "cpu/isa.h"
#include "cpu/linear_cross_entropy.h"
#include "cpu/log_mel.h"
#include "cpu/matrix_product.h"
#include "cpu/mel_normalization.h"
#include "cpu/prototype_cross_entropy.h"
#include "cpu/rms_norm.h"
#include "cpu/rotary.h"
#include "cpu/swiglu.h"
#include "cpu/varlen_attention.h"
#include "cpu/waveform_stats.h"
#if defined(SLAP_FAST_HAS_CUDA)
#include "cuda/bindings.h"
#endif

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

std::vector<std::string> compiled_isa_names() {
  std::vector<std::string> names;
  for (slap_fast::Isa isa : slap_fast::compiled_isas()) names.emplace_back(slap_fast::isa_name(isa));
  return names;
}

slap_fast::Padding padding_of(const std::string& name) {
  if (name == "zeros") return slap_fast::Padding::zeros;
  if (name == "reflect") return slap_fast::Padding::reflect;
  if (name == "kaldi") return slap_fast::Padding::kaldi;
  throw std::invalid_argument("unknown padding '" + name + "'; choose zeros, reflect or kaldi");
}

slap_fast::DType dtype_of(const std::string& name) {
  if (name == "float32") return slap_fast::DType::float32;
  if (name == "bfloat16") return slap_fast::DType::bfloat16;
  if (name == "float16") return slap_fast::DType::float16;
  throw std::invalid_argument("unknown dtype '" + name + "'; choose float32, bfloat16 or float16");
}

using Table = py::array_t<float, py::array::c_style>;

std::vector<float> to_vector(const Table& table) { return {table.data(), table.data() + table.size()}; }

slap_fast::LogMelSpec read_log_mel_spec(const py::kwargs& fields) {
  slap_fast::LogMelSpec spec;
  const auto read = [&](const char* name, auto& field) {
    field = fields[name].cast<std::remove_reference_t<decltype(field)>>();
  };
  read("n_fft", spec.n_fft);
  read("win_length", spec.win_length);
  read("hop_length", spec.hop_length);
  read("n_mels", spec.n_mels);
  read("first_sample", spec.first_sample);
  spec.padding = padding_of(fields["padding"].cast<std::string>());
  read("input_scale", spec.input_scale);
  read("remove_dc_offset", spec.remove_dc_offset);
  read("preemphasis", spec.preemphasis);
  read("preemphasis_over_clip", spec.preemphasis_over_clip);
  read("magnitude", spec.magnitude);
  read("power_guard", spec.power_guard);
  read("log_floor", spec.log_floor);
  read("log_guard", spec.log_guard);
  read("logarithm", spec.logarithm);
  read("log_scale", spec.log_scale);
  read("log_shift", spec.log_shift);
  spec.window = to_vector(fields["window"].cast<Table>());
  spec.filters = to_vector(fields["filters"].cast<Table>());
  return spec;
}

slap_fast::PackedWaveform packed_waveform(Address waveform, bool int16, std::int64_t samples, Address cu_seqlens,
                                          Address cu_frames, std::int64_t clips, std::int64_t frames) {
  slap_fast::PackedWaveform packed;
  if (int16)
    packed.int16s = pointer<const std::int16_t>(waveform);
  else
    packed.floats = pointer<const float>(waveform);
  packed.samples = samples;
  packed.cu_seqlens = pointer<const std::int64_t>(cu_seqlens);
  packed.cu_frames = pointer<const std::int64_t>(cu_frames);
  packed.clips = clips;
  packed.frames = frames;
  return packed;
}

void bind_log_mel(py::module_& module) {
  using slap_fast::LogMel;
  py::class_<LogMel>(module, "LogMel")
      .def(py::init([](const py::kwargs& fields) { return std::make_unique<LogMel>(read_log_mel_spec(fields)); }))
      .def(
          "forward",
          [](const LogMel& self, Address waveform, bool int16, std::int64_t samples, Address cu_seqlens,
             Address cu_frames, std::int64_t clips, std::int64_t frames, Address mels, int threads) {
            self.forward(packed_waveform(waveform, int16, samples, cu_seqlens, cu_frames, clips, frames),
                         pointer<float>(mels), threads);
          },
          py::arg("waveform"), py::arg("int16"), py::arg("samples"), py::arg("cu_seqlens"), py::arg("cu_frames"),
          py::arg("clips"), py::arg("frames"), py::arg("mels"), py::arg("threads"),
          py::call_guard<py::gil_scoped_release>())
      .def(
          "patches",
          [](const LogMel& self, Address waveform, bool int16, std::int64_t samples, Address cu_seqlens,
             Address cu_frames, std::int64_t clips, std::int64_t frames, std::int64_t patch_frames,
             std::int64_t patch_mels, float padding, float mask_value, Address time_masked, Address mel_masked,
             Address patches, std::int64_t tokens, int threads) {
            const slap_fast::PatchLayout layout{patch_frames,
                                                patch_mels,
                                                padding,
                                                mask_value,
                                                pointer<const std::uint8_t>(time_masked),
                                                pointer<const std::uint8_t>(mel_masked)};
            self.patches(packed_waveform(waveform, int16, samples, cu_seqlens, cu_frames, clips, frames), layout,
                         pointer<float>(patches), tokens, threads);
          },
          py::arg("waveform"), py::arg("int16"), py::arg("samples"), py::arg("cu_seqlens"), py::arg("cu_frames"),
          py::arg("clips"), py::arg("frames"), py::arg("patch_frames"), py::arg("patch_mels"), py::arg("padding"),
          py::arg("mask_value"), py::arg("time_masked"), py::arg("mel_masked"), py::arg("patches"), py::arg("tokens"),
          py::arg("threads"), py::call_guard<py::gil_scoped_release>())
      .def(
          "backward",
          [](const LogMel& self, Address waveform, bool int16, std::int64_t samples, Address cu_seqlens,
             Address cu_frames, std::int64_t clips, std::int64_t frames, Address grad_mels, Address grad_waveform,
             int threads) {
            self.backward(packed_waveform(waveform, int16, samples, cu_seqlens, cu_frames, clips, frames),
                          pointer<const float>(grad_mels), pointer<float>(grad_waveform), threads);
          },
          py::arg("waveform"), py::arg("int16"), py::arg("samples"), py::arg("cu_seqlens"), py::arg("cu_frames"),
          py::arg("clips"), py::arg("frames"), py::arg("grad_mels"), py::arg("grad_waveform"), py::arg("threads"),
          py::call_guard<py::gil_scoped_release>());
}

void bind_rms_norm(py::module_& module) {
  module.def(
      "rms_norm",
      [](const std::string& dtype, std::int64_t rows, std::int64_t width, Address x, Address residual, Address weight,
         float eps, Address sum, Address normed, Address rstd, int threads) {
        slap_fast::rms_norm({dtype_of(dtype), rows, width},
                            {pointer<const void>(x), pointer<const void>(residual), pointer<const void>(weight), eps,
                             pointer<void>(sum), pointer<void>(normed), pointer<float>(rstd)},
                            threads);
      },
      py::arg("dtype"), py::arg("rows"), py::arg("width"), py::arg("x"), py::arg("residual"), py::arg("weight"),
      py::arg("eps"), py::arg("sum"), py::arg("normed"), py::arg("rstd"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "rms_norm_backward",
      [](const std::string& dtype, std::int64_t rows, std::int64_t width, Address grad_normed, Address grad_sum,
         Address sum, Address weight, Address rstd, Address grad, Address grad_weight, int threads) {
        slap_fast::rms_norm_backward(
            {dtype_of(dtype), rows, width},
            {pointer<const void>(grad_normed), pointer<const void>(grad_sum), pointer<const void>(sum),
             pointer<const void>(weight), pointer<const float>(rstd), pointer<void>(grad), pointer<void>(grad_weight)},
            threads);
      },
      py::arg("dtype"), py::arg("rows"), py::arg("width"), py::arg("grad_normed"), py::arg("grad_sum"), py::arg("sum"),
      py::arg("weight"), py::arg("rstd"), py::arg("grad"), py::arg("grad_weight"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
}

// (in, out, heads, in_token_stride, in_head_stride, out_token_stride, out_head_stride)
using RotaryPart = std::tuple<Address, Address, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

void bind_rotary(py::module_& module) {
  module.def(
      "rotate",
      [](const std::vector<RotaryPart>& parts, const std::string& dtype, std::int64_t head_dim,
         std::int64_t tokens_per_frame, std::vector<double> thetas, bool inverse, Address cu_seqlens,
         std::int64_t sequences, std::int64_t total, int threads) {
        std::vector<slap_fast::RotaryTokens> tokens;
        for (const auto& [in, out, heads, in_token, in_head, out_token, out_head] : parts)
          tokens.push_back(
              {pointer<const void>(in), pointer<void>(out), heads, in_token, in_head, out_token, out_head});
        slap_fast::rotate({head_dim, tokens_per_frame, std::move(thetas), inverse},
                          pointer<const std::int64_t>(cu_seqlens), sequences, total, dtype_of(dtype), tokens, threads);
      },
      py::arg("parts"), py::arg("dtype"), py::arg("head_dim"), py::arg("tokens_per_frame"), py::arg("thetas"),
      py::arg("inverse"), py::arg("cu_seqlens"), py::arg("sequences"), py::arg("total"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
}

void bind_swiglu(py::module_& module) {
  module.def(
      "swiglu",
      [](const std::string& dtype, std::int64_t rows, std::int64_t width, Address gate_up, Address out, int threads) {
        slap_fast::swiglu({dtype_of(dtype), rows, width}, pointer<const void>(gate_up), pointer<void>(out), threads);
      },
      py::arg("dtype"), py::arg("rows"), py::arg("width"), py::arg("gate_up"), py::arg("out"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "swiglu_backward",
      [](const std::string& dtype, std::int64_t rows, std::int64_t width, Address grad, Address gate_up,
         Address grad_gate_up, int threads) {
        slap_fast::swiglu_backward({dtype_of(dtype), rows, width}, pointer<const void>(grad),
                                   pointer<const void>(gate_up), pointer<void>(grad_gate_up), threads);
      },
      py::arg("dtype"), py::arg("rows"), py::arg("width"), py::arg("grad"), py::arg("gate_up"), py::arg("grad_gate_up"),
      py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}

// (address, token_stride, head_stride)
using Heads = std::tuple<Address, std::int64_t, std::int64_t>;

slap_fast::HeadsView heads_view(const Heads& heads) {
  return {pointer<const void>(std::get<0>(heads)), std::get<1>(heads), std::get<2>(heads)};
}

void bind_varlen_attention(py::module_& module) {
  using slap_fast::AttentionBatch;
  using slap_fast::AttentionInputs;
  py::class_<AttentionInputs>(module, "AttentionInputs")
      .def(py::init([](const std::string& dtype, std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim,
                       std::int64_t left, std::int64_t right, float scale, const Heads& q, const Heads& k,
                       const Heads& v) {
             return AttentionInputs{dtype_of(dtype), heads, kv_heads,      head_dim,      left,
                                    right,           scale, heads_view(q), heads_view(k), heads_view(v)};
           }),
           py::arg("dtype"), py::arg("heads"), py::arg("kv_heads"), py::arg("head_dim"), py::arg("left"),
           py::arg("right"), py::arg("scale"), py::arg("q"), py::arg("k"), py::arg("v"));
  py::class_<AttentionBatch>(module, "AttentionBatch")
      .def(py::init([](Address cu_seqlens_q, Address cu_seqlens_k, std::int64_t clips, std::int64_t total_q,
                       std::int64_t total_k) {
             return AttentionBatch{pointer<const std::int32_t>(cu_seqlens_q), pointer<const std::int32_t>(cu_seqlens_k),
                                   clips, total_q, total_k};
           }),
           py::arg("cu_seqlens_q"), py::arg("cu_seqlens_k"), py::arg("clips"), py::arg("total_q"), py::arg("total_k"));
  module.def(
      "varlen_attention",
      [](const AttentionInputs& inputs, const AttentionBatch& batch, Address out, Address lse, int threads) {
        slap_fast::varlen_attention(inputs, batch, {pointer<void>(out), pointer<float>(lse)}, threads);
      },
      py::arg("inputs"), py::arg("batch"), py::arg("out"), py::arg("lse"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "varlen_attention_backward",
      [](const AttentionInputs& inputs, const AttentionBatch& batch, const Heads& grad_out, const Heads& out,
         Address lse, Address grad_lse, Address grad_q, Address grad_k, Address grad_v, int threads) {
        slap_fast::varlen_attention_backward(
            inputs, batch,
            {heads_view(grad_out), heads_view(out), pointer<const float>(lse), pointer<const float>(grad_lse),
             pointer<void>(grad_q), pointer<void>(grad_k), pointer<void>(grad_v)},
            threads);
      },
      py::arg("inputs"), py::arg("batch"), py::arg("grad_out"), py::arg("out"), py::arg("lse"), py::arg("grad_lse"),
      py::arg("grad_q"), py::arg("grad_k"), py::arg("grad_v"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
}

// (address, lane_stride, depth_stride), strides in elements
using Side = std::tuple<Address, std::int64_t, std::int64_t>;

slap_fast::ProductSide product_side(const std::string& dtype, const Side& side, std::int64_t lanes,
                                    std::int64_t depth) {
  return {dtype_of(dtype), pointer<const void>(std::get<0>(side)), lanes, depth, std::get<1>(side), std::get<2>(side)};
}

void bind_matrix_product(py::module_& module) {
  module.def(
      "matrix_product",
      [](const std::string& dtype, const Side& left, const Side& right, std::int64_t rows, std::int64_t columns,
         std::int64_t depth, Address out, std::int64_t stride, bool accumulate, int threads) {
        slap_fast::matrix_product(product_side(dtype, left, rows, depth), product_side(dtype, right, columns, depth),
                                  pointer<float>(out), stride, accumulate, threads);
      },
      py::arg("dtype"), py::arg("left"), py::arg("right"), py::arg("rows"), py::arg("columns"), py::arg("depth"),
      py::arg("out"), py::arg("stride"), py::arg("accumulate"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
}

void bind_int8_product(py::module_& module) {
  module.def("int8_kernels", [] {
    std::vector<std::string> names;
    for (const slap_fast::Int8Kernel* kernel : slap_fast::int8_kernels()) names.emplace_back(kernel->name);
    return names;
  });
  // Bytes of the panels, and number of the starts.
  module.def(
      "int8_sizes",
      [](const std::string& name, std::int64_t columns, std::int64_t depth) {
        const slap_fast::Int8Kernel& kernel = slap_fast::int8_kernel(name);
        return std::make_pair(slap_fast::int8_panel_bytes(kernel, columns, depth),
                              slap_fast::int8_starts(kernel, columns));
      },
      py::arg("kernel"), py::arg("columns"), py::arg("depth"));
  module.def(
      "int8_pack",
      [](const std::string& name, Address weight, std::int64_t columns, std::int64_t depth, Address panels,
         Address starts) {
        slap_fast::int8_kernel(name).pack(pointer<const std::int8_t>(weight), columns, depth,
                                          pointer<std::int8_t>(panels), pointer<std::int32_t>(starts));
      },
      py::arg("kernel"), py::arg("weight"), py::arg("columns"), py::arg("depth"), py::arg("panels"), py::arg("starts"),
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "int8_product",
      [](const std::string& name, std::pair<Address, std::int64_t> x, std::int64_t rows, Address panels, Address starts,
         Address scales, Address bias, std::int64_t columns, std::int64_t depth, std::pair<Address, std::int64_t> out,
         int threads) {
        slap_fast::int8_product(slap_fast::int8_kernel(name), pointer<const float>(x.first), x.second, rows,
                                {pointer<const std::int8_t>(panels), pointer<const std::int32_t>(starts),
                                 pointer<const float>(scales), pointer<const float>(bias), columns, depth},
                                pointer<float>(out.first), out.second, threads);
      },
      py::arg("kernel"), py::arg("x"), py::arg("rows"), py::arg("panels"), py::arg("starts"), py::arg("scales"),
      py::arg("bias"), py::arg("columns"), py::arg("depth"), py::arg("out"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
}

void bind_contrastive(py::module_& module) {
  using slap_fast::ContrastiveInputs;
  py::class_<ContrastiveInputs>(module, "ContrastiveInputs")
      .def(py::init([](const std::string& dtype, std::int64_t rows, std::int64_t columns, std::int64_t width,
                       std::pair<Address, std::int64_t> audio, std::pair<Address, std::int64_t> text, float scale,
                       float bias, bool sigmoid, std::int64_t offset, Address audio_ids, Address text_ids,
                       std::int64_t chunk_size) {
             return ContrastiveInputs{dtype_of(dtype),
                                      pointer<const void>(audio.first),
                                      pointer<const void>(text.first),
                                      rows,
                                      columns,
                                      width,
                                      audio.second,
                                      text.second,
                                      scale,
                                      bias,
                                      sigmoid,
                                      offset,
                                      pointer<const std::int64_t>(audio_ids),
                                      pointer<const std::int64_t>(text_ids),
                                      chunk_size};
           }),
           py::arg("dtype"), py::arg("rows"), py::arg("columns"), py::arg("width"), py::arg("audio"), py::arg("text"),
           py::arg("scale"), py::arg("bias"), py::arg("sigmoid"), py::arg("offset"), py::arg("audio_ids"),
           py::arg("text_ids"), py::arg("chunk_size"));
  module.def(
      "contrastive_sums",
      [](const ContrastiveInputs& inputs, Address row_loss, Address column_loss, Address row_positive,
         Address row_stats, Address column_best, int threads) {
        slap_fast::contrastive_sums(
            inputs,
            {pointer<float>(row_loss), pointer<float>(column_loss), pointer<float>(row_positive),
             pointer<float>(row_stats), pointer<float>(column_best)},
            threads);
      },
      py::arg("inputs"), py::arg("row_loss"), py::arg("column_loss"), py::arg("row_positive"), py::arg("row_stats"),
      py::arg("column_best"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
  module.def(
      "contrastive_sums_backward",
      [](const ContrastiveInputs& inputs, Address grad_row, Address grad_column, Address grad_positive,
         Address row_loss, Address column_loss, Address row_max, Address column_max, Address grad_audio,
         Address grad_text, int threads) {
        double grad_scale = 0.0, grad_bias = 0.0;
        slap_fast::contrastive_sums_backward(
            inputs,
            {pointer<const float>(grad_row), pointer<const float>(grad_column), pointer<const float>(grad_positive),
             pointer<const float>(row_loss), pointer<const float>(column_loss), pointer<const float>(row_max),
             pointer<const float>(column_max), pointer<void>(grad_audio), pointer<void>(grad_text), &grad_scale,
             &grad_bias},
            threads);
        return std::pair(grad_scale, grad_bias);
      },
      py::arg("inputs"), py::arg("grad_row"), py::arg("grad_column"), py::arg("grad_positive"), py::arg("row_loss"),
      py::arg("column_loss"), py::arg("row_max"), py::arg("column_max"), py::arg("grad_audio"), py::arg("grad_text"),
      py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}

slap_fast::GradDType grad_dtype_of(const std::optional<std::string>& dtype) {
  return dtype ? slap_fast::GradDType(dtype_of(*dtype)) : std::nullopt;
}

void bind_score_losses(py::module_& module) {
  module.def(
      "linear_cross_entropy",
      [](Address logits, std::int64_t rows, std::int64_t columns, std::int64_t stride, Address target,
         double label_smoothing, double z_loss, const std::optional<std::string>& grad_dtype, int threads) {
        return slap_fast::linear_cross_entropy({pointer<float>(logits), rows, columns, stride},
                                               pointer<const std::int64_t>(target), {label_smoothing, z_loss},
                                               grad_dtype_of(grad_dtype), threads);
      },
      py::arg("logits"), py::arg("rows"), py::arg("columns"), py::arg("stride"), py::arg("target"),
      py::arg("label_smoothing"), py::arg("z_loss"), py::arg("grad_dtype"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "sinkhorn_masses",
      [](Address scores, std::int64_t rows, std::int64_t columns, std::int64_t stride, float temperature,
         Address potential, Address column_max, Address column_sum, int threads) {
        slap_fast::sinkhorn_masses({pointer<float>(scores), rows, columns, stride},
                                   {temperature, pointer<const float>(potential)}, pointer<float>(column_max),
                                   pointer<double>(column_sum), threads);
      },
      py::arg("scores"), py::arg("rows"), py::arg("columns"), py::arg("stride"), py::arg("temperature"),
      py::arg("potential"), py::arg("column_max"), py::arg("column_sum"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "prototype_cross_entropy",
      [](Address student, Address teacher, std::int64_t rows, std::int64_t columns, std::int64_t stride,
         float student_temperature, float teacher_temperature, Address potential, Address token_weight,
         const std::optional<std::string>& grad_dtype, int threads) {
        return slap_fast::prototype_cross_entropy(
            {pointer<float>(student), rows, columns, stride}, pointer<float>(teacher), student_temperature,
            {teacher_temperature, pointer<const float>(potential)}, pointer<const float>(token_weight),
            grad_dtype_of(grad_dtype), threads);
      },
      py::arg("student"), py::arg("teacher"), py::arg("rows"), py::arg("columns"), py::arg("stride"),
      py::arg("student_temperature"), py::arg("teacher_temperature"), py::arg("potential"), py::arg("token_weight"),
      py::arg("grad_dtype"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}

void bind_flac(py::module_& module) {
  module.def(
      "decode_flac",
      [](Address data, std::int64_t bytes, Address offsets, std::int64_t files, Address starts, Address cu_seqlens,
         std::int64_t rows, int channels, int dtype, Address output, Address errors, int verify, int threads) {
        slap_fast::decode_flac({pointer<const std::uint8_t>(data), pointer<const std::int64_t>(offsets), files,
                                pointer<const std::int64_t>(starts), pointer<const std::int64_t>(cu_seqlens), channels,
                                static_cast<slap_fast::flac::SampleType>(dtype), pointer<void>(output),
                                pointer<std::int32_t>(errors), static_cast<slap_fast::flac::Verify>(verify)},
                               bytes, rows, threads);
      },
      py::arg("data"), py::arg("bytes"), py::arg("offsets"), py::arg("files"), py::arg("starts"), py::arg("cu_seqlens"),
      py::arg("rows"), py::arg("channels"), py::arg("dtype"), py::arg("output"), py::arg("errors"), py::arg("verify"),
      py::arg("threads"), py::call_guard<py::gil_scoped_release>());

  // fields [7, files]: those of FlacInfo in slap_fast/ops/decode_flac/info.py.
  module.def(
      "flac_info",
      [](Address data, Address offsets, std::int64_t files, Address fields) {
        const auto* at = pointer<const std::int64_t>(offsets);
        for (std::int64_t file = 0; file < files; ++file) {
          slap_fast::flac::Stream stream;
          const auto error =
              slap_fast::flac_info(pointer<const std::uint8_t>(data) + at[file], at[file + 1] - at[file], stream);
          const std::int64_t values[] = {stream.sample_rate,
                                         stream.channels,
                                         stream.bits,
                                         stream.samples,
                                         stream.max_block,
                                         stream.points,
                                         static_cast<std::int64_t>(error)};
          for (std::int64_t field = 0; field < 7; ++field)
            pointer<std::int64_t>(fields)[field * files + file] = values[field];
        }
      },
      py::arg("data"), py::arg("offsets"), py::arg("files"), py::arg("fields"),
      py::call_guard<py::gil_scoped_release>());

  // The frames of a file: (error, [(first sample, byte offset, samples)]).
  module.def(
      "flac_frames",
      [](Address data, std::int64_t bytes) {
        std::vector<std::tuple<std::int64_t, std::int64_t, std::int64_t>> points;
        const auto add = [](void* found, const slap_fast::flac::Point& point) {
          static_cast<decltype(points)*>(found)->emplace_back(point.sample, point.byte, point.samples);
        };
        slap_fast::flac::Error error;
        {
          const py::gil_scoped_release release;
          error = slap_fast::flac_frames(pointer<const std::uint8_t>(data), bytes, add, &points);
        }
        return std::make_tuple(static_cast<int>(error), std::move(points));
      },
      py::arg("data"), py::arg("bytes"));
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.attr("__version__") = SLAP_FAST_VERSION;
  module.attr("__sources__") = SLAP_FAST_SOURCES;

  module.def("compiled_isas", &compiled_isa_names);
  module.def("detected_isa", [] { return slap_fast::isa_name(slap_fast::detected_isa()); });
  module.def("chosen_isa", [] { return slap_fast::isa_name(slap_fast::chosen_isa()); });
  module.def("force_isa", &slap_fast::force_isa, py::arg("name"));

  module.def(
      "waveform_stats",
      [](Address waveform, std::int64_t total, Address cu_seqlens, std::int64_t clips, Address peak,
         Address mean_square, Address nonfinite, int threads) {
        slap_fast::waveform_stats(pointer<const float>(waveform), total, pointer<const std::int64_t>(cu_seqlens), clips,
                                  pointer<float>(peak), pointer<double>(mean_square), pointer<std::int64_t>(nonfinite),
                                  threads);
      },
      py::arg("waveform"), py::arg("total"), py::arg("cu_seqlens"), py::arg("clips"), py::arg("peak"),
      py::arg("mean_square"), py::arg("nonfinite"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());

  bind_log_mel(module);
  bind_rms_norm(module);
  bind_rotary(module);
  bind_swiglu(module);
  bind_matrix_product(module);
  bind_int8_product(module);
  bind_varlen_attention(module);
  bind_contrastive(module);
  bind_flac(module);
  bind_score_losses(module);

  module.def(
      "normalize_mels",
      [](Address frames, std::int64_t total, std::int64_t n_mels, Address cu_frames, std::int64_t clips,
         std::optional<float> dynamic_range, std::optional<float> deviation_guard, float mean, float deviation,
         Address normalized, int threads) {
        const slap_fast::MelNormalization params{dynamic_range.has_value(),
                                                 dynamic_range.value_or(0.0f),
                                                 deviation_guard.has_value(),
                                                 deviation_guard.value_or(0.0f),
                                                 mean,
                                                 deviation};
        slap_fast::normalize_mels(pointer<const float>(frames), total, n_mels, pointer<const std::int64_t>(cu_frames),
                                  clips, params, pointer<float>(normalized), threads);
      },
      py::arg("frames"), py::arg("total"), py::arg("n_mels"), py::arg("cu_frames"), py::arg("clips"),
      py::arg("dynamic_range"), py::arg("deviation_guard"), py::arg("mean"), py::arg("deviation"),
      py::arg("normalized"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
#if defined(SLAP_FAST_HAS_CUDA)
  slap_fast::cuda::add_bindings(module, &read_log_mel_spec);
#endif
}
