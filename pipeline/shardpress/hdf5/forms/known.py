"""All forms of rows. The child tries them in this order."""

from shardpress.hdf5.forms.dense import Columns, Dense
from shardpress.hdf5.forms.form import Form
from shardpress.hdf5.forms.sparse import Sparse
from shardpress.hdf5.forms.table import Table
from shardpress.hdf5.shard import FormName

FORMS: dict[FormName, Form] = {form.name: form for form in (Table(), Sparse(), Dense(), Columns())}
