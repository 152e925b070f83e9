"""The database: schema, migrations, one writer thread; knows no other part."""
