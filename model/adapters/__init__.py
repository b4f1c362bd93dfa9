"""The adapters: RealCustom and RealCustom++, the modules they consist of, loading and saving."""
