"""Device profiles: facts of one device type as TOML, imported as edgeprune.device_profiles."""
