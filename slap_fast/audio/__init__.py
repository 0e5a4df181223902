"""Audio files: any format to mono waveforms, and waveforms to FLAC. Begin with `waveform.load_audio`."""
