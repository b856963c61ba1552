"""A permission of its own for running a call again."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("celery_idempotent", "0002_slips")]

    operations = [
        migrations.AlterModelOptions(
            name="record",
            options={
                "permissions": (
                    ("forget_record", "Can forget an idempotency key"),
                    ("resolve_record", "Can settle an unknown outcome"),
                    ("resume_record", "Can run a call again"),
                ),
            },
        ),
    ]
