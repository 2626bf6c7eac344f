"""All forms of rows. The child tries them in this order."""

from shardpress.hdf5.forms.dense import Dense, OneRow
from shardpress.hdf5.forms.form import Form
from shardpress.hdf5.forms.group import ColumnGroup
from shardpress.hdf5.forms.samples import Samples
from shardpress.hdf5.forms.sparse import Sparse
from shardpress.hdf5.forms.table import Records

FORMS: dict[str, Form] = {
    form.name: form for form in (Records(), Sparse(), ColumnGroup(), Samples(), Dense(), OneRow())
}
