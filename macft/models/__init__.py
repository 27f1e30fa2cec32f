"""Models on this machine: find, fetch, import, describe, load; and the adapters on top of them."""
