"""What the contract tests share: assertions in the shipped contract that explain themselves."""

import pytest

pytest.register_assert_rewrite("celery_idempotent.testing.contract")
