from django.contrib import admin

from .models import Counter, Entry

admin.site.register(Counter)
admin.site.register(Entry)
