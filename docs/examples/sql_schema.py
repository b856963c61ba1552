"""The store's tables, made by your own code or by your migrations."""

from sqlalchemy import MetaData, create_engine

from celery_idempotent.stores import sql

engine = create_engine("sqlite:///shop.db")
sql.create_schema(engine)  # as `celery -A shop idempotency init-db` does

my_metadata = MetaData()  # that of your own tables
target_metadata = [my_metadata, sql.metadata]  # in Alembic's env.py
# [end]

from sqlalchemy import inspect  # noqa: E402

assert set(inspect(engine).get_table_names()) == set(sql.metadata.tables)
