"""What each owner was answered, beside its note."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("celery_idempotent", "0001_tables")]

    operations = [
        migrations.AddField(model_name="note", name="slip", field=models.BinaryField(null=True)),
    ]
