"""The conformance suite of lipmodel, on this backend."""

from lipmodel_hkm import HKM

from lipmodel.testing.backends import parametrize_with_checks


@parametrize_with_checks(HKM())
def test_conformance(backend, check):
    check(backend)
