// Documentation and arguments of fn.slap_fast.flac.
#include "dali/pipeline/operator/op_schema.h"

DALI_SCHEMA(slap_fast__Flac)
    .DocStr(R"(Decodes FLAC files, exactly as libFLAC does.

A file that cannot be decoded costs nothing but itself: its error code is not 0, and its waveform is zeros, of the length
in its header if that can be used, otherwise of length 0.

With ``device="mixed"``, the compressed bytes go to the GPU and are decoded there.

Outputs: the waveform, ``[samples, channels]``, or ``[samples]`` with ``mono=True``; the sample rate in Hz, a float like that
of ``decoders.audio``, 0 if the header is bad; the error code, int32, a ``slap_fast.ops.decode_flac.FlacError``.)")
    .NumInput(1)
    .InputDox(0, "encoded", "1D TensorList of uint8", "The bytes of whole FLAC files.")
    .NumOutput(3)
    .AddOptionalTypeArg("dtype",
                        R"(Of the waveform: ``FLOAT`` in [-1, 1), or ``INT16`` or ``INT32`` over their whole range.)",
                        DALI_FLOAT)
    .AddOptionalArg("mono", R"(Output ``[samples]``. A file with more than one channel has error 8 then.)", false)
    .AddOptionalArg("max_samples",
                    R"(Files with more samples per channel have error 7; 0 for no limit. A few bytes of FLAC can hold
seconds of silence: set this where files are not trusted.)",
                    std::int64_t{0})
    .AddOptionalArg("verify", R"(``"crc"`` checks the checksum of each frame, ``"md5"`` that of all samples too,
``"none"`` neither.)",
                    "crc");
