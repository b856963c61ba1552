"""A project with a PostgreSQL schema for each tenant: django-tenants and tenant-schemas-celery."""
