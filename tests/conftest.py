"""Settings of all tests."""

from hypothesis import HealthCheck, settings

# A loaded machine is no failure; what must be quick has its own test.
settings.register_profile("covey", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("covey")
