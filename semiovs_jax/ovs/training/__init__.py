"""Training of OVS models: SED on any labeled dataset, and the tiny models for the embedded benchmark."""
