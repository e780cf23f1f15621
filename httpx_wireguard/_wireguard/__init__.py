"""The WireGuard protocol, both roles, sans-IO."""
